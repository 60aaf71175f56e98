"use strict";
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
  const narrow = matchMedia("(max-width: 820px)");
  const config = { displayModeBar: false, responsive: true };

  // "@text" stands for the style sheet's --text, so that figures follow the theme.
  const resolve = (value) => {
    if (typeof value === "string") return value.startsWith("@") ? css(value.slice(1)) : value;
    if (Array.isArray(value)) return value.map(resolve);
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolve(one)]));
    return value;
  };
  const axis = (own) => ({
    gridcolor: css("line"), linecolor: css("line"), zerolinecolor: css("line"), tickcolor: css("line"), automargin: true, ...own,
    title: { standoff: 10, ...(own.title || {}) },
  });
  const layout = (figure) => {
    const own = resolve(figure.layout);
    // Two columns of a legend fit a phone; Plotly would make it one.
    if (own.legend && narrow.matches) own.legend = { ...own.legend, entrywidthmode: "fraction", entrywidth: 0.48, font: { size: 10 } };
    const axes = Object.fromEntries(["xaxis", "yaxis", "yaxis2"].filter((key) => key in own).map((key) => [key, axis(own[key])]));
    return {
      paper_bgcolor: figure.on_white ? "#ffffff" : "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: narrow.matches ? 11 : 13, color: figure.on_white ? "#1b2128" : css("text") },
      hoverlabel: { bgcolor: css("raised"), bordercolor: css("line"), font: { color: css("text") }, align: "left" },
      margin: { l: narrow.matches ? 44 : 60, r: 12, t: 48, b: 50 }, dragmode: narrow.matches ? false : "zoom",
      ...own, ...axes,
    };
  };
  const draw = (place) => {
    const figure = figures[place.dataset.figure];
    place.dataset.drawn = "yes";
    return Plotly.react(place, resolve(figure.data), layout(figure), config);
  };
  const all = () => [...document.querySelectorAll("[data-figure]")];
  const visible = (place) => { const details = place.closest("details"); return !details || details.open; };
  all().filter(visible).forEach(draw);
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", () => {
    if (details.open) details.querySelectorAll("[data-figure]:not([data-drawn])").forEach(draw);
  }));
  const redraw = () => all().filter((place) => place.dataset.drawn).forEach(draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);
  matchMedia("print").addEventListener("change", redraw);

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const body = table.tBodies[0];
    heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
      const numeric = head.classList.contains("n");
      const before = head.getAttribute("aria-sort");
      const descending = before ? before === "ascending" : numeric && column > 1;
      const key = (row) => {
        const cell = row.cells[column];
        if (!numeric) return cell.textContent;
        return cell.dataset.value === "" ? null : Number(cell.dataset.value);
      };
      const compare = (a, b) => {
        const [x, y] = [key(a), key(b)];
        if (x === null || y === null) return (x === null) - (y === null); // what has no value comes last either way
        return (numeric ? x - y : x.localeCompare(y)) * (descending ? -1 : 1);
      };
      body.append(...[...body.rows].sort(compare));
      heads.forEach((one) => one.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    }));
  }
})();
