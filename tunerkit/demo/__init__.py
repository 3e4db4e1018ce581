"""A project that runs without internet: tiny checkpoints of the real classes, real clips, and both JSON files.

Nothing heavy is imported until `create` is called.
"""

from tunerkit.demo.project import create, families

__all__ = ["create", "families"]
