/* Images compared by eye: a divider between any two, above panels that zoom and move together.

   Each figure of class srlib-compare holds its images once, as a row of panels. This file adds the
   rest: two lists to choose from, the divider with its handle, and the buttons. The view is one for all of them: the
   zoom (1 is the whole image) and the middle, in parts of the image's sides. Of several figures (srlib.viz.viewer) the
   reader chooses one. Without this file the rows of images stay. */

(() => {
  "use strict";

  const STEP = Math.SQRT2; // one press of a button
  const SMALLEST = 12; // image pixels across at the strongest zoom
  const KEPT = "srlib-compare"; // the two that were chosen last go along to the next page of this visit

  function made(tag, properties = {}, ...children) {
    const { data = {}, aria = {}, ...rest } = properties;
    const node = Object.assign(document.createElement(tag), rest);
    Object.assign(node.dataset, data);
    for (const [name, value] of Object.entries(aria)) node.setAttribute(name === "role" ? name : `aria-${name}`, value);
    node.append(...children);
    return node;
  }

  const between = (low, value, high) => Math.min(Math.max(value, low), high);

  function chosenLast() {
    try { return JSON.parse(sessionStorage.getItem(KEPT)) || {}; } catch { return {}; }
  }

  function keep(pair) {
    try { sessionStorage.setItem(KEPT, JSON.stringify(pair)); } catch { /* a page opened from a disk may have none */ }
  }

  function enhance(figure) {
    const grid = figure.querySelector(".srlib-panes");
    const width = Number(grid.dataset.width), height = Number(grid.dataset.height);
    const panes = [...grid.querySelectorAll(".srlib-panel")];
    const images = new Map(panes.map((pane) => [pane.dataset.label, pane.querySelector("img")]));
    const notes = new Map(panes.map((pane) => [pane.dataset.label, pane.dataset.note]));
    const deepest = Math.max(1, width / SMALLEST);
    const view = { zoom: 1, x: 0.5, y: 0.5 };
    const kept = chosenLast(), pair = {};
    const [left, right] = [...images.keys()].slice(-2);
    for (const [side, usual] of [["left", left], ["right", right]]) pair[side] = images.has(kept[side]) ? kept[side] : usual;

    // --- what is added ---
    const layers = {}, lists = {}, scores = {}, chooser = made("div", { className: "srlib-tools srlib-sides" });
    for (const side of ["left", "right"]) {
      lists[side] = made("select", { data: { side } }, ...[...images.keys()].map((name) => new Option(name, name)));
      scores[side] = made("span", { className: "srlib-note" });
      chooser.append(made("label", {}, `${side === "left" ? "Left" : "Right"} `, lists[side], scores[side]));
      layers[side] = made("img", { draggable: false, width, height, className: "dark-light" });
    }
    const handle = made("div", { className: "srlib-handle", tabIndex: 0,
      aria: { role: "slider", orientation: "horizontal", valuemin: 0, valuemax: 100 } },
      made("span", { aria: { hidden: "true" } }, "\u2194"));
    const stage = made("div", { className: "srlib-stage" },
      made("div", { className: "srlib-view" }, layers.right),
      made("div", { className: "srlib-view srlib-over" }, layers.left), handle);
    const buttons = {};
    for (const [name, text, label] of [["out", "\u2212", "Zoom out"], ["in", "+", "Zoom in"], ["reset", "Whole image", ""]]) {
      buttons[name] = made("button", { type: "button", textContent: text, data: { zoom: name }, aria: label ? { label } : {} });
    }
    const said = made("span", { className: "srlib-zoom", aria: { role: "status", live: "polite" } });
    const tools = made("div", { className: "srlib-tools", aria: { role: "group", label: "Zoom of all images" } },
      buttons.out, buttons.in, buttons.reset, said);
    const help = made("p", { className: "srlib-help" },
      "Drag the divider, or use its arrow keys. Drag a panel to move all of them; pinch, or turn the wheel with Ctrl held " +
      "or after a click, to zoom. On the keyboard: arrows, plus, minus, and 0 for the whole image.");
    grid.before(chooser, stage, tools);
    grid.after(help);
    grid.tabIndex = 0;
    grid.setAttribute("role", "group");
    grid.setAttribute("aria-label", "All images, in one view: arrow keys move it, plus and minus zoom, 0 shows the whole image");
    figure.style.setProperty("--wide", `${width}px`);
    figure.style.setProperty("--shape", `${width} / ${height}`);
    for (const image of images.values()) image.draggable = false;
    figure.classList.add("srlib-live");

    // --- the divider ---
    function choose(side, name) {
      pair[side] = name;
      lists[side].value = name;
      layers[side].src = images.get(name).src;
      layers[side].alt = images.get(name).alt;
      scores[side].textContent = notes.get(name);
      handle.setAttribute("aria-label", `Divider: ${pair.left} on the left, ${pair.right} on the right`);
      divide(split);
    }

    let split = 50;
    function divide(value) {
      split = between(0, value, 100);
      figure.style.setProperty("--split", `${split}%`);
      handle.setAttribute("aria-valuenow", Math.round(split));
      handle.setAttribute("aria-valuetext", `${Math.round(split)} % ${pair.left}`);
    }

    for (const side of ["left", "right"]) {
      choose(side, pair[side]);
      lists[side].addEventListener("change", () => { choose(side, lists[side].value); keep(pair); });
    }

    handle.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      const to = { ArrowLeft: split - step, ArrowDown: split - step, ArrowRight: split + step, ArrowUp: split + step,
        PageDown: split - 10, PageUp: split + 10, Home: 0, End: 100 }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      divide(Math.round(to));
    });

    // --- the view ---
    let saying = 0;
    function show() {
      view.zoom = between(1, view.zoom, deepest);
      const half = 0.5 / view.zoom;
      view.x = between(half, view.x, 1 - half);
      view.y = between(half, view.y, 1 - half);
      figure.style.setProperty("--zoom", view.zoom);
      figure.style.setProperty("--x", `${100 * (half - view.x)}%`);
      figure.style.setProperty("--y", `${100 * (half - view.y)}%`);
      for (const one of [stage, grid]) {
        const box = one === stage ? stage : panes[0].querySelector(".srlib-view");
        one.classList.toggle("srlib-crisp", box.clientWidth * view.zoom * devicePixelRatio >= width - 1);
      }
      const whole = view.zoom < 1.001;
      figure.classList.toggle("srlib-zoomed", !whole);
      buttons.out.setAttribute("aria-disabled", whole);
      buttons.reset.setAttribute("aria-disabled", whole);
      buttons.in.setAttribute("aria-disabled", view.zoom > deepest - 0.001);
      const seen = `${Math.round(width / view.zoom)} \u00d7 ${Math.round(height / view.zoom)}`;
      const text = whole ? `Zoom \u00d71: the whole image, ${seen} pixels`
        : `Zoom \u00d7${view.zoom.toFixed(1)}: ${seen} of ${width} \u00d7 ${height} pixels`;
      clearTimeout(saying); // said once it rests, not at every step of a drag
      saying = setTimeout(() => { if (said.textContent !== text) said.textContent = text; }, said.textContent ? 150 : 0);
    }

    /** Zoom by a factor; the place of the image below (across, down), in parts of the window's sides, stays there. */
    function zoom(factor, across = 0.5, down = 0.5) {
      const before = view.zoom;
      view.zoom = between(1, before * factor, deepest);
      view.x += (across - 0.5) * (1 / before - 1 / view.zoom);
      view.y += (down - 0.5) * (1 / before - 1 / view.zoom);
      show();
      return view.zoom !== before;
    }

    function move(across, down) {
      view.x += across / view.zoom;
      view.y += down / view.zoom;
      show();
    }

    function reset() {
      Object.assign(view, { zoom: 1, x: 0.5, y: 0.5 });
      show();
    }

    buttons.in.addEventListener("click", () => zoom(STEP));
    buttons.out.addEventListener("click", () => zoom(1 / STEP));
    buttons.reset.addEventListener("click", reset);

    grid.addEventListener("keydown", (event) => {
      const act = { "+": () => zoom(STEP), "=": () => zoom(STEP), "-": () => zoom(1 / STEP), "0": reset, Home: reset,
        ArrowLeft: () => move(-0.1, 0), ArrowRight: () => move(0.1, 0), ArrowUp: () => move(0, -0.1),
        ArrowDown: () => move(0, 0.1) }[event.key];
      if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
      if (view.zoom < 1.001 && event.key.startsWith("Arrow")) return; // there is nowhere to go, and the page may scroll
      event.preventDefault();
      act();
    });

    /** Where a pointer is, in parts of the sides of the window that it is over. */
    function place(event, box) {
      const edges = box.getBoundingClientRect();
      return { across: (event.clientX - edges.left) / edges.width, down: (event.clientY - edges.top) / edges.height };
    }

    const windowOf = (target) => (stage.contains(target) ? stage : target.closest(".srlib-view"));

    for (const area of [stage, grid]) {
      const pointers = new Map(); // id -> place; two of them pinch
      let box = null, start = null, along = false; // along: the divider follows, as the finger went sideways
      let pinched = false; // until the last finger is lifted, as what is left of a pinch means no place for the divider

      area.addEventListener("wheel", (event) => {
        const over = windowOf(event.target);
        if (!over || !(event.ctrlKey || event.metaKey || figure.contains(document.activeElement))) return;
        const at = place(event, over), lines = event.deltaMode === 1 ? 30 : 1;
        if (zoom(Math.exp(-between(-120, event.deltaY * lines, 120) / 300), at.across, at.down) || event.ctrlKey) {
          event.preventDefault(); // at either end of the zoom the page scrolls again
        }
      }, { passive: false });

      area.addEventListener("pointerdown", (event) => {
        const over = windowOf(event.target);
        if (!over || (event.pointerType === "mouse" && event.button !== 0)) return;
        if (pointers.size === 0) [box, start, along] = [over, event, event.pointerType === "mouse"];
        pointers.set(event.pointerId, place(event, box));
        pinched = pinched || pointers.size > 1;
        area.setPointerCapture(event.pointerId);
        if (area === stage) handle.focus({ preventScroll: true });
        else grid.focus({ preventScroll: true });
        if (event.pointerType === "mouse") {
          event.preventDefault();
          if (area === stage && !pinched) divide(100 * place(event, stage).across);
        }
      });

      area.addEventListener("pointermove", (event) => {
        const before = pointers.get(event.pointerId);
        if (!before) return;
        const now = place(event, box);
        const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
        if (other) {
          const edges = box.getBoundingClientRect();
          const apart = (one) => Math.hypot((one.across - other.across) * edges.width, (one.down - other.down) * edges.height);
          zoom(apart(now) / Math.max(apart(before), 1), (before.across + other.across) / 2, (before.down + other.down) / 2);
          move((before.across - now.across) / 2, (before.down - now.down) / 2);
        } else if (area === stage) {
          const across = Math.abs(event.clientX - start.clientX), down = Math.abs(event.clientY - start.clientY);
          along = along || (across > 6 && across > down);
          if (along && !pinched) divide(100 * now.across);
        } else move(before.across - now.across, before.down - now.down);
        pointers.set(event.pointerId, now);
      });

      for (const end of ["pointerup", "pointercancel"]) {
        area.addEventListener(end, (event) => {
          const tapped = Math.hypot(event.clientX - start?.clientX, event.clientY - start?.clientY) < 6;
          if (end === "pointerup" && area === stage && pointers.has(event.pointerId) && tapped && !pinched) {
            divide(100 * place(event, stage).across);
          }
          pointers.delete(event.pointerId);
          if (pointers.size === 0) pinched = false;
        });
      }
    }

    new ResizeObserver(show).observe(figure);
    show();
  }

  /** A list of photographs, of which the one that is chosen is shown. */
  function choosable(viewer) {
    const sections = [...viewer.querySelectorAll("section[data-photograph]")];
    if (sections.length < 2) return;
    const list = made("select", {}, ...sections.map((section) => new Option(section.dataset.photograph)));
    const show = () => sections.forEach((section) => { section.hidden = section.dataset.photograph !== list.value; });
    list.addEventListener("change", show);
    viewer.prepend(made("p", { className: "srlib-tools" }, made("label", {}, "Photograph ", list)));
    show();
  }

  function start() {
    document.querySelectorAll("figure.srlib-compare:not(.srlib-live)").forEach(enhance);
    document.querySelectorAll(".srlib-viewer").forEach(choosable);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
