// srlib's tables are sorted by the head of a column, what is folded away is searched; boxes that scroll sideways are reached by
// the Tab key.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

  // What a cell is sorted by: the number that it begins with, or its text.
  function key(row, column) {
    const text = (row.cells[column]?.textContent ?? "").trim().replaceAll("\u2212", "-");
    const number = parseFloat(text.replace(/^[\s×x±~≈<>]+/, "").replace(/(\d),(?=\d{3})/g, "$1"));
    return Number.isNaN(number) ? text : number;
  }

  // Numbers come before texts, such as the dash of an empty cell.
  function compare(a, b) {
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  }

  function sort(body, rows, column, order) {
    const sorted = order === "none" ? rows : [...rows].sort((a, b) => compare(key(a, column), key(b, column)));
    if (order === "descending") sorted.reverse();
    body.append(...sorted);
  }

  for (const table of document.querySelectorAll(".srlib-table table")) {
    const heads = [...([...(table.tHead?.rows ?? [])].at(-1)?.cells ?? [])];
    const body = table.tBodies[0], rows = [...(body?.rows ?? [])];
    if (rows.length < 3 || heads.some((head) => head.colSpan > 1) || rows.some((row) => row.cells.length !== heads.length)) continue;
    heads.forEach((head, column) => {
      if (!head.textContent.trim()) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "srlib-sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const order = NEXT[head.getAttribute("aria-sort") ?? "none"];
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        if (order !== "none") head.setAttribute("aria-sort", order);
        sort(body, rows, column, order);
      });
    });
  }

  // A field above what is folded away: rows without its words are hidden, and what holds the others is opened.
  for (const folded of document.querySelectorAll(".srlib-folded[data-find]")) {
    const rows = [...folded.querySelectorAll("tbody tr, article")].map((row) => [row, row.textContent.toLowerCase()]);
    const field = Object.assign(document.createElement("input"), { type: "search" });
    const said = document.createElement("output"), box = document.createElement("label");
    box.className = "srlib-find";
    box.append(`Search ${folded.dataset.find} `, field, said);
    folded.prepend(box);
    field.addEventListener("input", () => {
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      for (const [row, text] of rows) row.hidden = !words.every((word) => text.includes(word));
      for (const part of folded.querySelectorAll("details")) {
        part.open = words.length > 0 && part.querySelector(":is(tbody tr, article):not([hidden])") !== null;
      }
      said.textContent = words.length ? `${rows.filter(([row]) => !row.hidden).length} of ${rows.length}` : "";
    });
  }

  // A link that leads to something folded away opens it.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
    if (target?.closest("details")) target.scrollIntoView();
  };
  window.addEventListener("hashchange", reveal);
  reveal();

  for (const box of document.querySelectorAll(".pst-scrollable-table-container, .bd-article pre, .bd-article .cell_output > .output")) {
    new ResizeObserver(() => { box.tabIndex = box.scrollWidth > box.clientWidth + 1 ? 0 : -1; }).observe(box);
  }
});
