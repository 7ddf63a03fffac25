"use strict";
// Tabs, sorting, filters, rows that open, and charts drawn when they are first seen.
const charts = JSON.parse(document.getElementById("charts").textContent);
charts.config.legend.columns = innerWidth < 760 ? 2 : 7;
const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// The charting library is kept compressed; it defines vegaEmbed.
const packed = atob(document.getElementById("library").textContent);
const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
const library = new Response(unpacked).text().then((script) => new Function(script)());

async function draw(root) {
  await library;
  for (const place of all(".chart:not([data-drawn])", root)) {
    if (!place.offsetParent) continue;  // hidden: it has no width yet
    place.dataset.drawn = "yes";
    const chart = charts[place.dataset.chart];
    const spec = chart.history ? { ...charts.history, data: { values: chart.history } } : chart;
    const options = { mode: "vega-lite", actions: false, renderer: "svg", config: charts.config };
    vegaEmbed(place, spec, options).catch((error) => console.error(error));
  }
}

// Tabs
const tabs = all("[role=tab]");
function select(tab) {
  for (const other of tabs) {
    other.setAttribute("aria-selected", other === tab);
    other.tabIndex = other === tab ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = other !== tab;
  }
  draw(document.getElementById(tab.getAttribute("aria-controls")));
}
tabs.forEach((tab, i) => {
  tab.addEventListener("click", () => select(tab));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    const next = tabs[(to + tabs.length) % tabs.length];
    event.preventDefault();
    select(next);
    next.focus();
  });
});
for (const link of all("[data-tab]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    const tab = document.getElementById(link.dataset.tab);
    select(tab);
    tab.focus();
  });
}

// Rows that open
for (const button of all(".open")) {
  button.addEventListener("click", () => {
    const open = button.getAttribute("aria-expanded") !== "true";
    button.setAttribute("aria-expanded", open);
    const row = document.getElementById(button.getAttribute("aria-controls"));
    row.hidden = !open;
    draw(row);
  });
}

// Sorting: by number where both keys are numbers
function compare(a, b) {
  return a !== "" && b !== "" && !isNaN(a) && !isNaN(b) ? a - b : a.localeCompare(b);
}
for (const heading of all(".claims > thead th")) {
  heading.querySelector("button").addEventListener("click", () => {
    const table = heading.closest("table");
    const column = heading.cellIndex;
    const way = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    all("th", table.tHead).forEach((other) => other.setAttribute("aria-sort", "none"));
    heading.setAttribute("aria-sort", way);
    const key = (body) => body.rows[0].cells[column].dataset.key.replace("inf", "Infinity");
    const sorted = all("tbody.claim", table).sort((a, b) => compare(key(a), key(b)));
    table.append(...(way === "ascending" ? sorted : sorted.reverse()));
  });
}

// Filters
for (const panel of all(".panel:has(.toolbar)")) {
  const search = panel.querySelector("input[type=search]");
  const buttons = all("[data-status]", panel.querySelector(".toolbar"));
  const bodies = all("tbody.claim", panel);
  const filter = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const wanted = buttons.filter((b) => b.getAttribute("aria-pressed") === "true");
    let shown = 0;
    for (const body of bodies) {
      const text = body.rows[0].textContent.toLowerCase();
      const status = !wanted.length || wanted.some((b) => b.dataset.status === body.dataset.status);
      body.hidden = !(status && words.every((word) => text.includes(word)));
      shown += !body.hidden;
    }
    panel.querySelector(".shown").textContent = `${shown} of ${bodies.length} claims`;
    panel.querySelector(".none").hidden = shown > 0;
  };
  search.addEventListener("input", filter);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      filter();
    });
  }
  filter();
}

// Two machines side by side
const sides = all("[data-side]");
function pair() {
  const [left, right] = sides.map((side) => side.value);
  for (const cell of all("[data-machine]", document.getElementById("both"))) {
    cell.hidden = cell.dataset.machine !== left && cell.dataset.machine !== right;
  }
  for (const cell of all(".ratio")) {
    const speed = (machine) =>
      Number(cell.parentElement.querySelector(`[data-machine="${machine}"]`).dataset.key);
    const known = speed(left) > 0 && speed(right) > 0;
    cell.dataset.key = known ? speed(right) / speed(left) : -1;
    cell.textContent = known ? `${(speed(right) / speed(left)).toFixed(2)}×` : "–";
  }
}
sides.forEach((side) => side.addEventListener("change", pair));
if (sides.length) pair();

draw(document);
