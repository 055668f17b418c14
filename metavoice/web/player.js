// Play, seek, show and download one sound, and mark the word that is being said. `Player` in metavoice/ui/look.py defines the traits.
const ICONS = {
  play: '<path d="M8 5.5v13l11-6.5z"/>',
  pause: '<path d="M7 5h3.6v14H7zM13.4 5H17v14h-3.6z"/>',
  save: '<path d="M11 4h2v8.2l3.1-3.1 1.4 1.4L12 16l-5.5-5.5 1.4-1.4 3.1 3.1zM5 18h14v2H5z"/>',
  repeat: '<path d="M12 6V2.5L7 7l5 4.5V8a4.5 4.5 0 1 1-4.5 4.5h-2A6.5 6.5 0 1 0 12 6z"/>',
};
const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name]}</svg>`;
const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;

// Draw the waveform as a mask, so that its colours come from the style sheet.
function mask(peaks) {
  const bar = (p, i) => `M${i + 0.5} ${50 - 48 * Math.max(p, 0.02)}V${50 + 48 * Math.max(p, 0.02)}`;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${peaks.length} 100" preserveAspectRatio="none">` +
    `<path d="${peaks.map(bar).join("")}" stroke="#000" stroke-width=".62"/></svg>`;
  return `url("data:image/svg+xml,${encodeURIComponent(svg)}")`;
}

// The text in a box, a span for each word. `mark` marks the word at a time, and `goTo` is called with the time of a chosen
// one. Only the word that Tab reaches is a button, so that the text stays text for a screen reader.
function textBox(box, goTo) {
  let spans = [], starts = [], now = -1, reached = null; // index of the marked word; the word that Tab reaches
  const inView = (e) => e.offsetTop >= box.scrollTop && e.offsetTop + e.offsetHeight <= box.scrollTop + box.clientHeight;
  const reveal = (e) => { if (!inView(e)) box.scrollTop = e.offsetTop - box.clientHeight / 3; };
  function indexAt(time) {
    let [low, high] = [0, starts.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (starts[middle] <= time) low = middle + 1;
      else high = middle;
    }
    return low - 1;
  }
  function reach(e) {
    for (const [name, value] of [["role", "button"], ["tabindex", "0"]]) {
      reached?.removeAttribute(name);
      e.setAttribute(name, value);
    }
    reached = e;
  }
  function focus(e) {
    reach(e);
    e.focus({ preventScroll: true });
    reveal(e);
  }
  function mark(time, sought) {
    const at = indexAt(time), [before, e] = [spans[now], spans[at]];
    if (at === now) return;
    const follow = sought || !before || inView(before); // not if the reader has scrolled away
    before?.removeAttribute("aria-current");
    now = at;
    if (!e) return;
    e.setAttribute("aria-current", "true");
    if (!box.contains(document.activeElement)) reach(e);
    if (follow) reveal(e);
  }
  function fill(words) {
    const all = document.createDocumentFragment();
    [spans, starts, now, reached] = [[], words.map(([, , start]) => start), -1, null];
    for (const [before, word] of words) {
      const e = document.createElement("span");
      e.textContent = word;
      spans.push(e);
      all.append(before, e);
    }
    box.replaceChildren(all);
    box.hidden = !spans.length;
    box.scrollTop = 0;
    if (spans.length) reach(spans[0]);
  }
  box.onclick = ({ target }) => {
    const at = spans.indexOf(target);
    if (at < 0) return;
    focus(target);
    goTo(starts[at]);
  };
  box.onkeydown = (event) => {
    const at = spans.indexOf(event.target), last = spans.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last, Enter: at, " ": at }[event.key];
    if (at < 0 || to === undefined || event.ctrlKey || event.altKey || event.metaKey) return;
    if (to === at) goTo(starts[at]);
    else focus(spans[Math.min(Math.max(to, 0), last)]);
    event.preventDefault();
  };
  return { fill, mark };
}

function render({ model, el }) {
  el.innerHTML = `
    <div class="mv-player">
      <audio preload="auto"></audio>
      <div class="mv-player-top">
        <button type="button" class="mv-play"></button>
        <div class="mv-player-what"><div class="mv-player-title"></div><div class="mv-player-about"></div></div>
        <span class="mv-clock"></span>
      </div>
      <div class="mv-seen">
        <div class="mv-wave"></div>
        <img class="mv-picture" alt="Spectrogram: time from left to right, pitch from low to high">
        <i class="mv-head"></i>
        <input type="range" min="0" step="any" value="0" aria-label="Position">
      </div>
      <div class="mv-words" role="group" aria-label="Text; the arrow keys choose a word, Enter goes to it" dir="auto"
        data-lm-suppress-shortcuts="true"></div>
      <div class="mv-player-end">
        <button type="button" class="mv-repeat">${icon("repeat")}<span></span></button>
        <span class="mv-save"><select aria-label="Format"></select><button type="button">${icon("save")}Download</button></span>
      </div>
    </div>`;
  const find = (s) => el.querySelector(s);
  const [root, audio, play, seen, seek, time, format] =
    [".mv-player", "audio", ".mv-play", ".mv-seen", "input", ".mv-clock", "select"].map(find);
  const text = textBox(find(".mv-words"), (start) => goTo(start + 0.001)); // a browser rounds times down
  const urls = {};
  const url = (name, parts, type) => {
    if (urls[name]) URL.revokeObjectURL(urls[name]);
    return (urls[name] = URL.createObjectURL(new Blob(parts, { type })));
  };
  const length = () => model.get("duration");

  let frame = null;
  function draw(sought = false) {
    const at = Math.min(audio.currentTime, length()), shown = `${clock(at)} / ${clock(length())}`;
    seen.style.setProperty("--mv-at", `${(100 * at) / (length() || 1)}%`);
    if (time.textContent !== shown) time.textContent = shown;
    seek.value = at;
    seek.setAttribute("aria-valuetext", `${clock(at)} of ${clock(length())}`);
    text.mark(audio.ended ? -1 : at, sought);
  }
  function tick() {
    draw();
    frame = audio.paused ? null : requestAnimationFrame(tick);
  }
  function goTo(at) {
    audio.currentTime = at;
    draw(true);
  }
  function state() {
    play.innerHTML = icon(audio.paused ? "play" : "pause");
    play.setAttribute("aria-label", `${audio.paused ? "Play" : "Pause"} ${model.get("heading")}`);
    if (!frame) tick();
  }
  function fill() {
    const there = model.get("sound").byteLength > 0;
    root.hidden = !there;
    audio.pause();
    if (!there) return;
    audio.src = url("sound", [model.get("sound")], "audio/flac");
    seek.max = length();
    find(".mv-player-title").textContent = model.get("heading");
    find(".mv-player-title").hidden = model.get("words").length > 0; // it is the beginning of the text
    find(".mv-player-about").textContent = model.get("about");
    const shape = mask(model.get("peaks"));
    Object.assign(find(".mv-wave").style, { maskImage: shape, webkitMaskImage: shape });
    const pictured = model.get("picture").byteLength > 0;
    find(".mv-picture").hidden = !pictured;
    if (pictured) find(".mv-picture").src = url("picture", [model.get("picture")], "image/png");
    text.fill(model.get("words"));
    const options = (names) => names.map((name) => new Option(name, name));
    const [formats, captions] = [model.get("formats"), model.get("captions")];
    find(".mv-save").hidden = !formats.length;
    find(".mv-repeat").hidden = !model.get("repeat_label");
    find(".mv-repeat span").textContent = model.get("repeat_label");
    const chosen = format.value, group = Object.assign(document.createElement("optgroup"), { label: "Captions" });
    group.append(...options(captions));
    format.replaceChildren(...options(formats), ...(captions.length ? [group] : []));
    if ([...formats, ...captions].includes(chosen)) format.value = chosen;
    // A browser refuses to autoplay on a page without user interaction; the button works then.
    if (model.get("autoplay")) {
      audio.play().catch(state);
      // On a narrow screen the player is far below the text; the box around it is shown a moment after this.
      setTimeout(() => root.scrollIntoView({ block: "nearest" }), 100);
    }
    state();
  }
  function handOver(about, buffers) {
    const a = document.createElement("a");
    Object.assign(a, { href: url("file", [buffers[0]], about.type), download: about.name });
    document.body.append(a);
    a.click();
    a.remove();
  }

  play.onclick = () => (audio.paused ? audio.play() : audio.pause());
  seek.oninput = () => goTo(Number(seek.value));
  find(".mv-save button").onclick = () => model.send({ format: format.value });
  find(".mv-repeat").onclick = () => model.send({ repeat: true });
  for (const event of ["play", "pause", "ended", "seeked", "loadedmetadata"]) audio.addEventListener(event, state);
  model.on("change:revision", fill);
  model.on("msg:custom", handOver);
  fill();
  return () => {
    audio.pause();
    if (frame) cancelAnimationFrame(frame);
    model.off("change:revision", fill);
    model.off("msg:custom", handOver);
    Object.values(urls).forEach(URL.revokeObjectURL);
  };
}
export default { render };
