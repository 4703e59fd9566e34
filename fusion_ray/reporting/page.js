"use strict";
(() => {
  const figures = document.getElementById("figures").textContent;
  const mode = window.matchMedia("(prefers-color-scheme: dark)");

  // A string "$name" in a figure stands for the page's colour of that name.
  function inColours(text) {
    const style = getComputedStyle(document.documentElement);
    return text.replace(/"\$([a-z][a-z0-9]*)"/g, (_, name) =>
      JSON.stringify(style.getPropertyValue("--" + name).trim()));
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    const line = style.getPropertyValue("--line").trim();
    const narrow = window.innerWidth < 600;
    for (const [id, figure] of Object.entries(JSON.parse(inColours(figures)))) {
      const place = document.getElementById(id);
      if (!place) continue;
      const axis = { gridcolor: line, zerolinecolor: line, linecolor: line };
      const layout = {
        paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
        font: { color: style.getPropertyValue("--text").trim(), family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
        margin: { l: 60, r: 10, t: 20, b: 50 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
        hoverlabel: { font: { family: "system-ui, sans-serif" } },
        ...figure.layout,
        xaxis: { ...axis, automargin: true, ...(figure.layout.xaxis || {}) },
        yaxis: { ...axis, automargin: true, ...(figure.layout.yaxis || {}) },
      };
      place.style.minHeight = layout.height + "px";
      Plotly.react(place, figure.data, layout, { responsive: true, displayModeBar: false });
    }
  }

  draw();
  mode.addEventListener("change", draw);
})();
