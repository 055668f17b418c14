// Names, states and headings for screen readers, which the widgets of ipywidgets lack, and results brought into view.
// `AriaAttributes` in metavoice/ui/look.py puts it on a page.
let count = 0;
const id = (e) => (e.id ||= `mv-name-${++count}`);
const set = (e, attributes) => {
  for (const [name, value] of Object.entries(attributes))
    if (e.getAttribute(name) !== String(value)) e.setAttribute(name, value);
};

// Name a control by the text above it, and describe it by the text below it.
function nameControls(setting) {
  const name = setting.querySelector(".mv-name").textContent, about = setting.querySelector("small");
  for (const control of setting.querySelectorAll("input, select, textarea, [role=slider], .widget-readout")) {
    const own = control.type === "checkbox" ? `: ${control.parentElement.textContent.trim()}` : "";
    set(control, { "aria-label": name + own, "aria-describedby": id(about) });
    if (control.matches(".widget-readout")) set(control, { role: "textbox" });
  }
}

function annotate(page) {
  const each = (selector, change) => page.querySelectorAll(selector).forEach(change);
  each(".mv-setting", nameControls);
  each(".widget-toggle-buttons", (group) => {
    const title = group.closest(".mv-card")?.querySelector(".mv-title");
    if (title) set(group, { role: "group", "aria-label": title.textContent });
  });
  each(".widget-toggle-button", (button) => set(button, { "aria-pressed": button.matches(".mod-active") }));
  each(".mv-past > .jupyter-button", (button) => set(button, { "aria-current": button.matches(".mv-now") }));
  each(".mv-recording > .jupyter-button", (button) => set(button, { "aria-label": button.title }));
  each(".mv-disclosure", (box) => {
    const [toggle, content] = [".mv-toggle", ".mv-content"].map((s) => box.querySelector(s));
    if (!toggle?.firstElementChild || !content) return;
    set(toggle, { role: "heading", "aria-level": box.matches(".mv-inner") ? 3 : 2 });
    set(toggle.firstElementChild, { "aria-expanded": box.matches(".mv-open"), "aria-controls": id(content) });
  });
}

function render({ el }) {
  let page = null, timer = null, seen = new WeakSet(), focused = null;
  const update = () => {
    timer = null;
    annotate(page);
    for (const notice of page.querySelectorAll(".mv-reveal"))
      if (!seen.has(notice)) {
        seen.add(notice);
        notice.scrollIntoView({ block: "nearest" });
      }
    // The button that removed a row is gone, and the focus with it: move it to the row that took its place.
    if (focused && !focused.button.isConnected && document.activeElement === document.body) {
      const buttons = focused.list.querySelectorAll(".mv-recording > .jupyter-button");
      const next = buttons[Math.min(focused.at, buttons.length - 1)] ?? page.querySelector("input[type=file]");
      focused = null;
      next?.focus();
    }
  };
  const remember = ({ target }) => {
    const button = target.closest?.(".mv-recording > .jupyter-button"), list = button?.closest(".mv-past");
    focused = list && { button, list, at: [...list.querySelectorAll(".mv-recording > .jupyter-button")].indexOf(button) };
  };
  const observer = new MutationObserver(() => (timer ??= setTimeout(update, 30)));
  const attach = () => {
    page = el.closest(".mv");
    if (!page) return (timer = setTimeout(attach, 50)); // it isn't on the page yet
    page.querySelectorAll(".mv-reveal").forEach((notice) => seen.add(notice));
    observer.observe(page, { childList: true, subtree: true, attributes: true, attributeFilter: ["class", "title"] });
    page.addEventListener("focusin", remember);
    update();
  };
  attach();
  return () => {
    clearTimeout(timer);
    observer.disconnect();
    page?.removeEventListener("focusin", remember);
  };
}
export default { render };
