// The book's tables can be sorted by the head of a column, and boxes that scroll can be scrolled by keyboard.
"use strict";

(() => {
  const TABLES = ".srlib-table table, .bd-article table.table";
  const VERDICTS = ["exact", "within", "differs", "not-run"];
  const STATES = { none: "ascending", ascending: "descending", descending: "none" };
  const SUFFIXES = { k: 1e3, K: 1e3, M: 1e6, G: 1e9, T: 1e12 };
  const UNITS = { "µs": 1e-6, "μs": 1e-6, ms: 1e-3, s: 1, min: 60, h: 3600, B: 1, KiB: 2 ** 10, MiB: 2 ** 20, GiB: 2 ** 30, kB: 1e3, MB: 1e6, GB: 1e9 };
  const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const LEAD = /^[\s×x±~≈<>≤≥=#(]*(?=[-+.\d])/; // what may stand before a number that a cell begins with
  const NUMBER = /[-+]?(?:\d{1,3}(?:[,\u2009\u202f\u00a0]\d{3})+(?!\d)|\d+)?(?:\.\d+)?/y;
  const words = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

  // The number at the start of a text, in units of its own kind (seconds, bytes, one), or null.
  function number(text) {
    const plain = text.replaceAll("\u2212", "-");
    const lead = LEAD.exec(plain);
    if (!lead) return null;
    NUMBER.lastIndex = lead[0].length;
    const found = NUMBER.exec(plain);
    if (!found || !/\d/.test(found[0])) return null;
    let value = Number(found[0].replace(/[,\u2009\u202f\u00a0]/g, ""));
    let rest = plain.slice(NUMBER.lastIndex);
    const power = /^(?:[eE]([-+]?\d+)|\s*[×x·]\s*10(⁻?[⁰¹²³⁴-⁹]+))/.exec(rest);
    if (power) {
      const raised = power[2] && [...power[2]].map((c) => (c === "⁻" ? "-" : RAISED.indexOf(c))).join("");
      value *= 10 ** Number(power[1] ?? raised);
      rest = rest.slice(power[0].length);
    }
    const unit = /^\s*([A-Za-zµμ]+)/.exec(rest)?.[1] ?? "";
    return value * (UNITS[unit] ?? SUFFIXES[unit] ?? 1);
  }

  // What a cell is sorted by: {number}, {text}, or {} where it holds nothing, as a dash or "not run" do.
  function key(cell) {
    if (!cell) return {};
    const given = cell.dataset.sort;
    if (given !== undefined && given !== "") return Number.isNaN(Number(given)) ? { text: given } : { number: Number(given) };
    const printed = cell.querySelector(".srlib-printed");
    const copy = (printed ?? cell).cloneNode(true);
    const badge = copy.querySelector(".verdict");
    if (badge && copy.textContent.trim() === badge.textContent.trim()) {
      const rank = VERDICTS.findIndex((verdict) => badge.classList.contains(`verdict-${verdict}`));
      return VERDICTS[rank] === "not-run" ? {} : { number: rank };
    }
    for (const extra of copy.querySelectorAll("sup, style, .srlib-mark")) extra.remove();
    const text = copy.textContent.replace(/[ \t\n]+/g, " ").trim();
    if (/^(?:[-–—·.?]*|(?:· )?not run\b.*|n\/a|nan|none)$/i.test(text)) return {};
    const value = number(text);
    return value === null ? { text } : { number: value, text };
  }

  // Keys as numbers where the column is one of numbers: each entry with a digit begins with its number, or all begin
  // with the same words before it. An entry of another kind in such a column comes last.
  function comparable(keys) {
    const filled = keys.filter((k) => k.number !== undefined || k.text !== undefined);
    const numeric = filled.filter((k) => k.number !== undefined);
    const mixed = filled.some((k) => k.number === undefined && /\d/.test(k.text));
    if (numeric.length && numeric.length * 2 >= filled.length && !mixed) return keys.map((k) => k.number ?? null);
    const before = filled.map((k) => /^[^\d\u2212+-]*/.exec(k.text ?? "")[0]);
    if (filled.length && before[0] && before.every((text) => text === before[0])) {
      const after = keys.map((k) => (k.text === undefined ? null : number(k.text.slice(before[0].length))));
      if (after.some((value) => value !== null)) return after;
    }
    return keys.map((k) => k.text ?? (k.number === undefined ? null : String(k.number)));
  }

  function compare(a, b) {
    return typeof a === "number" && typeof b === "number" ? a - b : words.compare(a, b);
  }

  // The cell of a row that stands in a column, cells over several columns counted as such.
  function at(row, column) {
    let place = 0;
    for (const cell of row.cells) {
      place += cell.colSpan;
      if (column < place) return cell;
    }
    return null;
  }

  // The rows of a table that change places with one another: those between two headings of groups, without totals.
  function runs(table) {
    const found = [];
    for (const body of table.tBodies) {
      let run = [];
      for (const row of [...body.rows]) {
        if (!row.matches(".srlib-group, .srlib-total")) {
          run.push(row);
          continue;
        }
        found.push(run);
        run = [];
      }
      found.push(run);
    }
    return found.filter((run) => run.length > 1);
  }

  function sort(originals, column, state) {
    const sign = state === "descending" ? -1 : 1;
    const values = new Map();
    if (state !== "none") {
      const rows = originals.flat();
      const keys = comparable(rows.map((row) => key(at(row, column))));
      rows.forEach((row, k) => values.set(row, keys[k]));
    }
    for (const run of originals) {
      const after = document.createComment("");
      run.at(-1).parentNode.insertBefore(after, last(run).nextSibling);
      const order = state === "none" ? run : [...run].sort((one, other) => {
        const [a, b] = [values.get(one), values.get(other)];
        if (a === null || b === null) return (a === null) - (b === null);
        return sign * compare(a, b);
      });
      for (const row of order) after.parentNode.insertBefore(row, after);
      after.remove();
    }
  }

  // Which row of a run stands lowest now, in whatever order the run is.
  function last(run) {
    return run.reduce((one, other) => (one.compareDocumentPosition(other) & Node.DOCUMENT_POSITION_FOLLOWING ? other : one));
  }

  function sortable(table, status) {
    const heads = [...(table.tHead?.rows ?? [])].at(-1);
    const originals = runs(table);
    if (!heads || !originals.length || table.querySelector('tbody [rowspan]:not([rowspan="1"])')) return;
    const named = [...heads.cells].filter((head) => head.tagName === "TH" && head.textContent.trim());
    let column = 0;
    for (const head of heads.cells) {
      const own = column;
      column += head.colSpan;
      if (!named.includes(head) || head.colSpan > 1) continue;
      const name = head.textContent.trim().replace(/\s+/g, " ");
      const button = document.createElement("button");
      button.type = "button";
      button.className = "srlib-sort";
      const line = head.querySelector(":scope > p:only-child") ?? head;
      if (line.querySelector("a, button, input")) {
        button.setAttribute("aria-label", `Sort by ${name}`);
      } else {
        button.append(...line.childNodes);
      }
      line.append(button);
      head.classList.add("srlib-sortable");
      button.addEventListener("click", () => {
        const state = STATES[head.getAttribute("aria-sort") ?? "none"];
        for (const other of named) other.removeAttribute("aria-sort");
        if (state !== "none") head.setAttribute("aria-sort", state);
        sort(originals, own, state);
        status.textContent = state === "none" ? "In the order of the page" : `Sorted by ${name}, ${state}`;
      });
    }
  }

  // A box that scrolls sideways is a stop for the Tab key as long as it has something to scroll.
  function reachable(box) {
    const scrolls = box.scrollWidth > box.clientWidth + 1;
    if (scrolls && box.tabIndex !== 0) {
      box.tabIndex = 0;
      box.dataset.reachable = "";
      if (!box.matches("pre, [role]")) {
        box.setAttribute("role", "group");
        box.setAttribute("aria-label", "Scrolls sideways");
      }
    } else if (!scrolls && "reachable" in box.dataset) {
      box.removeAttribute("tabindex");
      delete box.dataset.reachable;
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    const status = document.createElement("p");
    status.setAttribute("role", "status");
    status.className = "srlib-status";
    document.querySelector("main")?.append(status);
    for (const table of document.querySelectorAll(TABLES)) sortable(table, status);

    const boxes = document.querySelectorAll(".pst-scrollable-table-container, .bd-article pre, .bd-article .cell_output > .output");
    const watch = new ResizeObserver((seen) => seen.forEach((one) => reachable(one.target)));
    for (const box of boxes) watch.observe(box);
  });
})();
