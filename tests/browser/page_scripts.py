"""What the driver asks the page itself, as JavaScript functions; they work in JupyterLab 3.6 and 4."""

KERNEL_READY = """() => {
  const widget = window.jupyterapp && window.jupyterapp.shell.currentWidget;
  const session = widget && widget.context && widget.context.sessionContext;
  const kernel = session && session.session && session.session.kernel;
  return !!kernel && session.isReady && kernel.connectionStatus === 'connected' && kernel.status === 'idle';
}"""
"""The toolbar says "idle" before the kernel is there, and a Run All in that moment runs nothing: ask the session."""

START_COMMAND = """([command, options]) => {
  window.tunerkitDone = false;
  const end = () => { window.tunerkitDone = true; };
  window.jupyterapp.commands.execute(command, options).then(end, end);
}"""

COMMAND_DONE = "() => window.tunerkitDone"

CELLS = """() => window.jupyterapp.shell.currentWidget.content.widgets
  .filter(cell => cell.model.type === 'code')
  .map(cell => ({
    count: cell.model.executionCount,
    outputs: cell.model.outputs.toJSON().map(output => ({
      kind: output.output_type,
      text: output.output_type === 'error'
        ? `${output.ename}: ${output.evalue}\\n${(output.traceback || []).join('\\n')}`
        : (output.output_type === 'stream' ? [output.text].flat().join('') : ''),
    })),
  }))"""

IS_SAVED = "() => !window.jupyterapp.shell.currentWidget.context.model.dirty"

VIDEO_STATES = """async (seconds) => {
  const wait = time => new Promise(resolve => setTimeout(resolve, time));
  const watch = async (video) => {
    const end = performance.now() + 1000 * seconds;
    video.muted = true;
    video.play().catch(() => {});
    while (performance.now() < end && !video.error && !(video.readyState >= 2)) await wait(50);
    const before = video.currentTime;
    let moves = false;
    const moved = () => video.currentTime !== before || video.ended;  // to its end before it was looked at
    const shown = () => (moves ||= moved()) && video.readyState >= 2;  // a loop's jump loads anew
    while (performance.now() < end && !video.error && !shown()) await wait(50);
    const state = {
      source: (video.currentSrc || video.src).slice(0, 40),
      label: video.getAttribute('aria-label') || '',
      width: video.videoWidth, height: video.videoHeight, seconds: video.duration || 0,
      ready: video.readyState, moves,
      error: video.error ? `${video.error.code} ${video.error.message}` : '',
    };
    video.pause();
    return state;
  };
  const videos = [...document.querySelectorAll('.jp-Notebook video')], states = [];
  for (let first = 0; first < videos.length; first += 4) {  // few at a time: each has a decoder of its own
    const some = videos.slice(first, first + 4);
    for (const video of some) {  // what is out of sight may not be loaded
      video.scrollIntoView({block: 'center'});
      await wait(150);
    }
    states.push(...await Promise.all(some.map(watch)));
  }
  return states;
}"""

UNSKIPPED = ".jp-Notebook * { content-visibility: visible !important; }"
"""JupyterLab 4 leaves out what is outside the window: it has no text, and its height is a guess."""

HEIGHT = """() => {
  const panel = document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)');
  panel.querySelectorAll('.jp-WindowedPanel-outer, .jp-Notebook').forEach(part => { part.scrollTop = 0; });
  const cells = [...panel.querySelectorAll('.jp-Cell')].map(cell => cell.getBoundingClientRect());
  return Math.ceil(cells[cells.length - 1].bottom - cells[0].top);
}"""
"""Of all cells together, in pixels, scrolled to the first."""

ROOM = """() => {
  const shell = window.jupyterapp.shell;
  if (!shell.leftCollapsed) shell.collapseLeft();
}"""
"""The list of files takes a third of the page."""
