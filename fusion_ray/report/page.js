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

// The alignment viewer. Text of tokens is set as text, never as markup.
(() => {
  const views = JSON.parse(document.getElementById("views").textContent);
  const choice = document.getElementById("view-choice");
  if (!choice) return;
  const place = document.getElementById("view-groups");
  const detail = document.getElementById("view-detail");

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function list(title, entries, real, realText, colour) {
    const box = make("div");
    box.append(make("h5", "", title));
    const shown = entries.some((entry) => entry[2]) ? entries : [...entries, [realText, real, true]];
    for (const [text, p, isReal] of shown) {
      const line = make("div", isReal ? "entry real" : "entry");
      const bar = make("b");
      bar.style.setProperty("--bar", `var(${colour})`);
      bar.style.width = `${Math.max(0.5, 100 * p)}%`;
      line.append(bar, make("span", "", text), make("span", "", percent(p)));
      box.append(line);
    }
    return box;
  }

  const percent = (p) => (p === null ? "" : p < 0.001 ? "<0.1 %" : `${(100 * p).toFixed(1)} %`);
  const chance = (tokens, key) => tokens.reduce((all, token) => all * token[key], 1);

  function column(title, tokens, entries, real, colour) {
    const box = make("div");
    box.append(make("h4", "", title));
    for (const token of tokens) box.append(list(`at ${token.text}`, token[entries], token[real], token.text, colour));
    return box;
  }

  function explain(view, group) {
    const projected = group.pivot.filter((token) => token.projected);
    const parts = [
      [`${view.source} says`, group.source, "top", "real", "--c2"],
      [`projected onto the pivot's tokens`, projected, "projected", "projected_real", "--c3"],
      ["pivot says", group.pivot, "top", "real", "--c0"],
    ].filter(([, tokens]) => tokens.length);
    const known = parts.map(([title, tokens, , real]) => `${title} ${percent(chance(tokens, real))}`);
    detail.replaceChildren(make("p", "small", `The text of this box: ${known.join(", ")}.`));
    for (const part of parts) detail.append(column(...part));
  }

  function select(view, index) {
    const boxes = place.children;
    const next = Math.min(Math.max(index, 0), boxes.length - 1);
    if (next < 0) return;
    for (const box of place.querySelectorAll("[aria-selected=true]")) box.setAttribute("aria-selected", "false");
    boxes[next].setAttribute("aria-selected", "true");
    explain(view, view.groups[next]);
    return boxes[next];
  }

  function show(view) {
    place.replaceChildren();
    view.groups.forEach((group, index) => {
      const box = make("button", group.pivot.length + group.source.length > 2 ? "group many" : "group");
      box.type = "button";
      box.setAttribute("role", "option");
      for (const tokens of [group.pivot, group.source]) {
        const row = make("span");
        for (const token of tokens) row.append(make("i", "", token.text));
        box.append(row);
      }
      for (const event of ["mouseenter", "focus", "click"]) box.addEventListener(event, () => select(view, index));
      box.addEventListener("keydown", (event) => {
        const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (step) select(view, index + step)?.focus();
      });
      place.append(box);
    });
    if (view.shown < view.tokens) place.append(make("span", "muted", `... ${view.tokens - view.shown} more tokens`));
    const first = view.groups.findIndex((group) => group.pivot.length + group.source.length > 2);
    select(view, first < 0 ? 0 : first);
  }

  views.forEach((view, index) => {
    const option = make("option", "", `${view.source}: ${view.domain}, ${view.id}`);
    option.value = index;
    choice.append(option);
  });
  choice.addEventListener("change", () => show(views[choice.value]));
  show(views[0]);
})();
