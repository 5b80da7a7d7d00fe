// Tables are sorted by the head of a column; boxes that scroll sideways are reached by the Tab key.
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

  for (const table of document.querySelectorAll(".srlib-table table, .bd-article table.table")) {
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

  for (const box of document.querySelectorAll(".pst-scrollable-table-container, .bd-article pre, .bd-article .cell_output > .output")) {
    new ResizeObserver(() => { box.tabIndex = box.scrollWidth > box.clientWidth + 1 ? 0 : -1; }).observe(box);
  }
});
