// Cards of voices: choose one, listen to a sample. `Gallery` in metavoice/ui/look.py defines the traits.
const ICONS = {
  play: '<path d="M8 5.5v13l11-6.5z"/>',
  pause: '<path d="M7 5h3.6v14H7zM13.4 5H17v14h-3.6z"/>',
};
const icon = (name) => `<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[name]}</svg>`;
const make = (tag, attributes, ...children) => {
  const e = Object.assign(document.createElement(tag), attributes);
  e.append(...children);
  return e;
};
let count = 0;

function render({ model, el }) {
  const group = make("div", { className: "mv-gallery" });
  const trouble = make("div", { className: "mv-said mv-bad", role: "alert", hidden: true });
  const sound = new Audio(), urls = new Map(); // name of a voice → URL of its sample
  let wanted = null; // the voice whose sample was asked for last
  group.setAttribute("role", "group");
  el.append(group, trouble);

  const card = (name) => [...group.children].find((e) => e.dataset.name === name);
  function state() {
    for (const e of group.children) {
      const name = e.dataset.name, listen = e.querySelector(".mv-listen");
      e.querySelector(".mv-choose").setAttribute("aria-pressed", name === model.get("value"));
      if (!listen) continue;
      const waiting = name === wanted && !urls.has(name), playing = name === wanted && !waiting && !sound.paused;
      listen.innerHTML = icon(playing ? "pause" : "play");
      listen.setAttribute("aria-label", `${playing ? "Pause the" : waiting ? "Generating a" : "Play a"} sample of ${name}`);
      listen.setAttribute("aria-busy", waiting);
    }
  }
  function start(name) {
    sound.src = urls.get(name);
    sound.play().catch(state);
  }
  function listen(name) {
    trouble.hidden = true;
    if (name === wanted && urls.has(name)) sound.paused ? sound.play().catch(state) : sound.pause();
    else {
      sound.pause();
      wanted = name;
      urls.has(name) ? start(name) : model.send({ play: name });
    }
    state();
  }
  function receive(about, buffers) {
    if (about.error) Object.assign(trouble, { textContent: about.error, hidden: false });
    else urls.set(about.name, URL.createObjectURL(new Blob([buffers[0]], { type: "audio/flac" })));
    if (about.name === wanted) about.error ? (wanted = null) : start(wanted);
    state();
  }
  function forget() {
    sound.pause();
    wanted = null;
    urls.forEach((url) => URL.revokeObjectURL(url));
    urls.clear();
  }
  function fill() {
    const focused = document.activeElement, at = group.contains(focused) && focused.closest(".mv-voice").dataset.name;
    forget();
    group.setAttribute("aria-label", model.get("label"));
    group.replaceChildren(...model.get("cards").map(({ name, about, sample }) => {
      const [title, text] = [make("b", { textContent: name }), make("small", { textContent: about })];
      title.id = `mv-voice-${++count}`;
      text.id = `${title.id}-about`;
      const choose = make("button", { type: "button", className: "mv-choose" }, title, text);
      choose.setAttribute("aria-labelledby", title.id);
      choose.setAttribute("aria-describedby", text.id);
      choose.onclick = () => {
        model.set("value", name);
        model.save_changes();
        state();
      };
      const e = make("div", { className: "mv-voice" }, choose);
      e.dataset.name = name;
      if (sample) e.append(make("button", { type: "button", className: "mv-listen", onclick: () => listen(name) }));
      return e;
    }));
    state();
    if (at) card(at)?.querySelector("button").focus();
  }

  for (const event of ["play", "pause", "ended"]) sound.addEventListener(event, state);
  model.on("change:cards", fill);
  model.on("change:value", state);
  model.on("msg:custom", receive);
  fill();
  return () => {
    forget();
    model.off("change:cards", fill);
    model.off("change:value", state);
    model.off("msg:custom", receive);
  };
}
export default { render };
