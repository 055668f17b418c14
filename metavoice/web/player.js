// Play, seek, show and download one sound. `Player` in metavoice/ui/look.py defines the traits.
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
      <div class="mv-player-end">
        <button type="button" class="mv-repeat">${icon("repeat")}<span></span></button>
        <span class="mv-save"><select aria-label="Format"></select><button type="button">${icon("save")}Download</button></span>
      </div>
    </div>`;
  const find = (s) => el.querySelector(s);
  const [root, audio, play, seek] = [".mv-player", "audio", ".mv-play", "input"].map(find);
  const urls = {};
  const url = (name, parts, type) => {
    if (urls[name]) URL.revokeObjectURL(urls[name]);
    return (urls[name] = URL.createObjectURL(new Blob(parts, { type })));
  };
  const length = () => model.get("duration");

  let frame = null;
  function tick() {
    const at = Math.min(audio.currentTime, length());
    root.style.setProperty("--mv-at", `${(100 * at) / (length() || 1)}%`);
    find(".mv-clock").textContent = `${clock(at)} / ${clock(length())}`;
    seek.value = at;
    seek.setAttribute("aria-valuetext", `${clock(at)} of ${clock(length())}`);
    frame = audio.paused ? null : requestAnimationFrame(tick);
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
    find(".mv-player-about").textContent = model.get("about");
    const shape = mask(model.get("peaks"));
    Object.assign(find(".mv-wave").style, { maskImage: shape, webkitMaskImage: shape });
    const seen = model.get("picture").byteLength > 0;
    find(".mv-picture").hidden = !seen;
    if (seen) find(".mv-picture").src = url("picture", [model.get("picture")], "image/png");
    const formats = model.get("formats");
    find(".mv-save").hidden = !formats.length;
    find(".mv-repeat").hidden = !model.get("repeat_label");
    find(".mv-repeat span").textContent = model.get("repeat_label");
    find("select").replaceChildren(...formats.map((f) => new Option(f, f)));
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
  seek.oninput = () => { audio.currentTime = seek.value; tick(); };
  find(".mv-save button").onclick = () => model.send({ format: find("select").value });
  find(".mv-repeat").onclick = () => model.send({ repeat: true });
  for (const event of ["play", "pause", "ended", "loadedmetadata"]) audio.addEventListener(event, state);
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
