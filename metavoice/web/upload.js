// Upload files and microphone recordings to Python in parts. `UploadWidget` in metavoice/ui/panels.py defines the traits.
const PART = 4 << 20; // bytes in a message; Jupyter closes the connection on a message of 10 MB
const RATE = 24000; // Hz of recordings and of converted files
const clock = (s) => `${Math.floor(s / 60)}:${String(Math.floor(s % 60)).padStart(2, "0")}`;

// Convert a blob in any format that the browser decodes to mono 16-bit wav.
async function wav(blob) {
  const context = new OfflineAudioContext(1, 1, RATE);
  const sound = await context.decodeAudioData(await blob.arrayBuffer());
  const channels = Array.from({ length: sound.numberOfChannels }, (_, n) => sound.getChannelData(n));
  const view = new DataView(new ArrayBuffer(44 + 2 * sound.length));
  const text = (at, s) => [...s].forEach((c, n) => view.setUint8(at + n, c.charCodeAt(0)));
  text(0, "RIFF"); view.setUint32(4, 36 + 2 * sound.length, true); text(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true); view.setUint32(28, 2 * RATE, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  text(36, "data"); view.setUint32(40, 2 * sound.length, true);
  for (let n = 0; n < sound.length; n++) {
    const x = channels.reduce((sum, c) => sum + c[n], 0) / channels.length;
    view.setInt16(44 + 2 * n, Math.round(32767 * Math.max(-1, Math.min(1, x))), true);
  }
  return new Blob([view], { type: "audio/wav" });
}

function render({ model, el }) {
  el.innerHTML = `
    <div class="mv-upload">
      <label class="mv-drop">
        <input type="file">
        <svg viewBox="0 0 24 24" aria-hidden="true"><path d="M11 16V8.8L8.4 11.4 7 10l5-5 5 5-1.4 1.4L13 8.8V16zM5 18h14v2H5z"/></svg>
        <span><b>Choose a file</b> or drop here</span>
        <small></small>
      </label>
      <div class="mv-record">
        <button type="button"><i></i><span>Record</span></button>
        <div class="mv-meter" role="meter" aria-label="Level" aria-valuemin="0" aria-valuemax="100" aria-valuenow="0"><i></i></div>
        <span class="mv-clock"></span>
      </div>
      <blockquote hidden></blockquote>
      <p class="mv-trouble" role="alert" hidden></p>
    </div>`;
  const find = (s) => el.querySelector(s);
  const [drop, input, button, script, trouble] = [".mv-drop", "input", "button", "blockquote", ".mv-trouble"].map(find);
  const say = (text) => { trouble.textContent = text; trouble.hidden = !text; };

  async function send(name, blob) {
    if (blob.size > model.get("limit"))
      return say(`${name} has ${(blob.size / 1e6).toFixed(0)} MB; up to ${(model.get("limit") / 1e6).toFixed(0)} MB are taken.`);
    const id = crypto.getRandomValues(new Uint32Array(1))[0];
    for (let at = 0; at < Math.max(blob.size, 1); at += PART)
      model.send({ id, name, size: blob.size, at }, undefined, [await blob.slice(at, at + PART).arrayBuffer()]);
  }
  const begin = () => { say(""); model.send({ begin: true }); }; // errors of an earlier upload are forgotten
  async function take(files) {
    if (!files.length) return;
    begin();
    for (const file of model.get("multiple") ? files : files.slice(0, 1)) {
      let [name, blob] = [file.name, file];
      if (file.size > model.get("limit")) // the sound alone may be smaller
        try { [name, blob] = [file.name.replace(/\.\w+$/, ".wav"), await wav(file)]; } catch { /* send says that it is too large */ }
      await send(name, blob);
    }
    input.value = "";
  }

  let recorder = null, context = null, timer = null;
  async function start() {
    begin();
    if (!navigator.mediaDevices)
      return say("A browser gives its microphone only to pages on https or on this computer; choose a file instead.");
    let stream; // without the processing for phone calls, which changes the voice
    try { stream = await navigator.mediaDevices.getUserMedia({ audio: { echoCancellation: false, noiseSuppression: false, autoGainControl: false } }); }
    catch (e) { return say(e.name === "NotFoundError" ? "No microphone was found." : `The microphone can't be used: ${e.message}.`); }
    context = new AudioContext();
    const meter = context.createAnalyser(), heard = new Float32Array(meter.fftSize), parts = [];
    context.createMediaStreamSource(stream).connect(meter);
    recorder = new MediaRecorder(stream, { audioBitsPerSecond: 256000 });
    recorder.ondataavailable = (e) => parts.push(e.data);
    recorder.onstop = async () => {
      clearInterval(timer); context.close(); recorder = null;
      stream.getTracks().forEach((t) => t.stop());
      show(false);
      if (!parts.some((p) => p.size)) return;
      try { await send("recording.wav", await wav(new Blob(parts, { type: parts[0].type }))); }
      catch { say("Nothing was recorded; try again, and speak a little longer."); }
    };
    const began = performance.now();
    timer = setInterval(() => {
      meter.getFloatTimeDomainData(heard);
      const decibels = 20 * Math.log10(Math.max(...heard.map(Math.abs), 1e-5)), seconds = (performance.now() - began) / 1000;
      const level = find(".mv-meter"), percent = Math.max(0, Math.min(100, 100 + (decibels * 100) / 54));
      level.style.setProperty("--mv-level", `${percent}%`);
      level.setAttribute("aria-valuenow", Math.round(percent));
      level.dataset.hot = decibels > -1;
      find(".mv-clock").textContent = `${clock(seconds)} of ${clock(model.get("advice"))}`;
      if (seconds >= model.get("longest")) recorder.stop();
    }, 60);
    recorder.start();
    show(true);
  }
  function show(recording) {
    find(".mv-record").dataset.on = recording;
    find(".mv-record button span").textContent = recording ? "Stop" : "Record";
    find(".mv-meter").style.setProperty("--mv-level", "0%");
    find(".mv-meter").setAttribute("aria-valuenow", 0);
    script.hidden = !recording || !model.get("script");
    if (!recording) find(".mv-clock").textContent = "";
  }
  function describe() {
    Object.assign(input, { accept: model.get("accept"), multiple: model.get("multiple") });
    find(".mv-drop b").textContent = model.get("multiple") ? "Choose files" : "Choose a file";
    find("small").textContent = model.get("hint");
    find(".mv-record").hidden = !model.get("microphone");
    script.textContent = model.get("script");
  }

  input.onchange = () => take([...input.files]);
  for (const event of ["dragenter", "dragover", "dragleave", "drop"])
    drop.addEventListener(event, (e) => { e.preventDefault(); e.stopPropagation(); drop.dataset.over = /over|enter/.test(e.type); });
  drop.addEventListener("drop", (e) => take([...e.dataTransfer.files]));
  button.onclick = () => (recorder ? recorder.stop() : start());
  model.on("change", describe);
  describe();
  return () => { model.off("change", describe); if (recorder) recorder.stop(); };
}
export default { render };
