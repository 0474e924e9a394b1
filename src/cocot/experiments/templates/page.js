// The page's own part: charts are drawn by Vega, the search tree here, from the data above. Text is only ever set as text.
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);

for (const place of document.querySelectorAll("[data-spec]")) {
  vegaEmbed(place, data.specs[place.dataset.spec], { actions: false, renderer: "svg" });
}

function svg(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

function cell(row, kind, text) {
  const element = document.createElement(kind);
  element.textContent = text;
  row.append(element);
}

const RADIUS = 15;

function start(section) {
  const problems = data.searches[section.dataset.search];
  const find = (name) => section.querySelector("." + name);
  const choice = find("problem");
  problems.forEach((problem, index) => {
    const option = document.createElement("option");
    option.value = index;
    option.textContent = `${index}: ${problem.answer}`.slice(0, 60);
    choice.append(option);
  });

  function drawTree(problem, k) {
    const tree = find("tree");
    tree.replaceChildren();
    const [width, height] = problem.size;
    tree.setAttribute("viewBox", `${-2 * RADIUS} ${-2 * RADIUS} ${width + 4 * RADIUS} ${height + 6 * RADIUS}`);
    for (const [from, to] of problem.edges) {
      const [[x1, y1], [x2, y2]] = [problem.places[from], problem.places[to]];
      const isTrue = problem.way.some(([a, b]) => a === from && b === to);
      const line = svg("line", { x1, y1, x2, y2 }, tree);
      if (isTrue) line.classList.add("true");
    }
    problem.names.forEach((name, node) => {
      const [x, y] = problem.places[node];
      const value = problem.values[k][node];
      const group = svg("g", { transform: `translate(${x} ${y})` }, tree);
      if (node === problem.target) group.classList.add("target");
      if (node === problem.chosen[k]) group.classList.add("chosen");
      if (node === problem.distractor) group.classList.add("distractor");
      svg("circle", { r: RADIUS, class: "ring" }, group);
      svg("circle", { r: RADIUS * Math.sqrt(value), class: "value" }, group);
      svg("text", { y: 4, class: "name" }, group).textContent = name.length > 12 ? name.slice(0, 11) + "…" : name;
      svg("text", { y: RADIUS + 12, class: "number", "data-node": node }, group).textContent = value.toFixed(2);
      const change = k ? value - problem.values[k - 1][node] : 0;
      if (Math.abs(change) >= 0.005) {
        const text = (change > 0 ? "▲ " : "▼ ") + Math.abs(change).toFixed(2);
        svg("text", { y: RADIUS + 24, class: change > 0 ? "change up" : "change down" }, group).textContent = text;
      }
    });
    const likeliest = problem.names
      .map((name, node) => [problem.values[k][node], name])
      .sort((a, b) => b[0] - a[0])
      .slice(0, 3)
      .map(([value, name]) => `${name} ${(100 * value).toFixed(0)} %`);
    tree.setAttribute("aria-label", `After ${k} thoughts the likeliest next nodes are ${likeliest.join(", ")}.`);
  }

  function drawTable(problem) {
    const table = find("nodes");
    table.replaceChildren();
    const head = table.createTHead().insertRow();
    ["node", "depth", ...problem.values.map((_, k) => `after ${k}`)].forEach((text) => cell(head, "th", text));
    const body = table.createTBody();
    problem.names.forEach((name, node) => {
      const row = body.insertRow();
      [name, problem.depth[node] < 0 ? "–" : problem.depth[node], ...problem.values.map((v) => v[node].toFixed(4))].forEach(
        (text) => cell(row, "td", text)
      );
    });
  }

  function draw() {
    const problem = problems[Number(choice.value)];
    const k = Number(find("thoughts").value);
    find("count").textContent = k;
    find("question").textContent = problem.question;
    find("output").textContent = problem.outputs[k];
    find("verdict").textContent = problem.correct[k] ? "right" : "wrong";
    const read = k ? problem.nearest[k - 1] : [];
    find("nearest").textContent = read.length
      ? `Thought ${k}, read through the head: ${read.map(([token, value]) => `“${token}” ${value.toFixed(2)}`).join(", ")}`
      : "";
    for (const part of section.querySelectorAll(".graph")) part.hidden = !problem.names;
    if (problem.names) {
      drawTree(problem, k);
      drawTable(problem);
    }
  }

  choice.addEventListener("change", draw);
  find("thoughts").addEventListener("input", draw);
  draw();
}

document.querySelectorAll("[data-search]").forEach(start);
