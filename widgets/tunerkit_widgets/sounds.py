"""A sound as it is trained on: its spectrogram, and a player of exactly those samples."""

from __future__ import annotations

import html
import io
import wave

import numpy as np

from tunerkit_widgets.loss_plot import DPI, INK, clear_png
from tunerkit_widgets.previews import data_uri
from tunerkit_widgets.surroundings import show
from tunerkit_widgets.texts import text

SIZE_INCHES = (7.2, 2.2)
COLOURS = 256
"""As many as a palette holds: with fewer, the scale takes even the colour of the letters."""


def show_sound(waveform: np.ndarray, sample_rate: int, mel: np.ndarray, *, title: str = "") -> None:
    """Show a spectrogram and play its sound, also in a notebook that was saved and is opened elsewhere.

    Args:
        waveform: float `[channels, samples]` in -1..1, one or two channels; played as it is, not made louder.
        sample_rate: of the waveform, in Hz.
        mel: log-mel spectrogram `[channels, spectra, bands]`; the mean of the channels is drawn.
        title: what it is the sound of.
    """
    channels, samples = waveform.shape
    details = text("sounds.details", seconds=f"{samples / sample_rate:.2f}", rate=sample_rate, channels=channels)
    words = f"{title}: {details}" if title else details
    picture = data_uri(mel_png(mel, samples / sample_rate), "image/png")
    player = data_uri(wav(waveform, sample_rate), "audio/wav")
    # The address stands on the tag itself: notebooks that are not trusted drop <source>, which IPython's Audio uses.
    show(
        f"<p>{html.escape(words)}</p><img src='{picture}' alt='{text('sounds.picture')}'>"
        f"<br><audio src='{player}' controls aria-label='{html.escape(words, quote=True)}'></audio>",
        words,
    )


def mel_png(mel: np.ndarray, seconds: float) -> bytes:
    """The mean over the channels of a log-mel spectrogram `[channels, spectra, bands]`, as PNG bytes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = np.asarray(mel, dtype=float).mean(axis=0).T
    figure = Figure(figsize=SIZE_INCHES, dpi=DPI, layout="constrained", facecolor="none")
    axes = figure.add_subplot()
    axes.imshow(levels, origin="lower", aspect="auto", extent=(0, seconds, 0, len(levels)), cmap="magma")
    axes.set_xlabel(text("sounds.seconds"), color=INK)
    axes.set_ylabel(text("sounds.bands"), color=INK)
    axes.tick_params(colors=INK)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return clear_png(np.asarray(canvas.buffer_rgba()), COLOURS)


def wav(waveform: np.ndarray, sample_rate: int) -> bytes:
    """A waveform `[channels, samples]` in -1..1 (louder is clipped) as a WAV file of 16 bits."""
    levels = np.round(np.clip(waveform, -1, 1) * 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(len(levels))
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(levels.T.tobytes())
    return buffer.getvalue()
