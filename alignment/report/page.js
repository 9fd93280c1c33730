// Draws the page's figures: colours come from the style sheet, so that light, dark and print each look right.
(() => {
  "use strict";
  const root = document.documentElement;
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const hidden = new Set();
  const drawn = new Set();
  const axis = {
    gridcolor: "var(--rule)", zerolinecolor: "var(--zero)", linecolor: "var(--soft)", tickcolor: "var(--soft)",
    zerolinewidth: 1, automargin: true, nticks: 6, ticks: "outside", ticklen: 3, showline: true, exponentformat: "e",
    title: { font: { size: 13, color: "var(--ink)" }, standoff: 8 },
  };
  const base = {
    autosize: true, showlegend: false, hovermode: "closest",
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    paper_bgcolor: "var(--paper)", plot_bgcolor: "var(--paper)", margin: { l: 44, r: 10, t: 8, b: 28 },
    font: { family: "system-ui, -apple-system, Segoe UI, Roboto, Noto Sans, DejaVu Sans, sans-serif", size: 12, color: "var(--soft)" },
    hoverlabel: { bgcolor: "var(--paper)", bordercolor: "var(--soft)", font: { color: "var(--ink)", size: 12 }, align: "left" },
  };
  const config = { displayModeBar: false, displaylogo: false, doubleClick: "reset", showTips: false };

  const painter = () => {
    const style = getComputedStyle(root);
    const paint = (value) => {
      if (typeof value === "string") {
        // A variable of the style sheet, with an opacity in hexadecimal where there is one.
        const match = /^var\((--[\w-]+)\)(?:@(\w\w))?$/.exec(value);
        return match ? style.getPropertyValue(match[1]).trim() + (match[2] ?? "") : value;
      }
      if (Array.isArray(value)) return value.length && typeof value[0] === "object" ? value.map(paint) : value;
      if (value === null || typeof value !== "object") return value;
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, paint(inner)]));
    };
    return paint;
  };

  const merged = (own = {}) => ({
    ...axis, ...own, title: own.title ? { ...axis.title, ...own.title } : undefined,
  });

  const draw = (div) => {
    const spec = specs[div.dataset.figure];
    const layout = { ...base, ...spec.layout, xaxis: merged(spec.layout.xaxis), yaxis: merged(spec.layout.yaxis) };
    const data = spec.data.map((trace) => ({ ...trace, visible: !hidden.has(trace.meta.group) }));
    layout.annotations = layout.annotations?.filter((name) => !hidden.has(Number(name.name)));
    const paint = painter();
    drawn.add(div);
    layout.width = div.clientWidth;
    layout.height = div.clientHeight;
    Plotly.react(div, paint(data), paint(layout), config);
  };

  const all = [...document.querySelectorAll(".plot")];
  const isShown = (div) => div.clientWidth > 0;
  const redraw = () => drawn.forEach((div) => isShown(div) && draw(div));

  // One figure at a time, so that a page about thirty runs can be read while its thousand curves are drawn.
  const drawNext = () => {
    const div = all.find((candidate) => isShown(candidate) && !drawn.has(candidate));
    if (!div) return;
    draw(div);
    setTimeout(drawNext);
  };
  drawNext();

  document.querySelectorAll(".legend button").forEach((button) => {
    button.addEventListener("click", () => {
      const group = Number(button.dataset.group);
      if (!hidden.delete(group)) hidden.add(group);
      document.querySelectorAll(`.legend button[data-group="${group}"]`).forEach((twin) => {
        twin.setAttribute("aria-pressed", String(!hidden.has(group)));
      });
      redraw();
    });
  });

  let timer;
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width || root.hasAttribute("data-printing")) return;
    width = innerWidth;
    clearTimeout(timer);
    timer = setTimeout(() => { redraw(); drawNext(); }, 150);
  });
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", drawNext));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  addEventListener("beforeprint", () => {
    root.setAttribute("data-printing", "");
    all.filter(isShown).forEach(draw);
  });
  addEventListener("afterprint", () => {
    root.removeAttribute("data-printing");
    redraw();
  });
})();
