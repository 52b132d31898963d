"use strict";
// Everything in the data is text, and is written as text: guests wrote a part of it.
const run = JSON.parse(document.getElementById("data").textContent);
const by = (id) => document.getElementById(id);

function make(tag, given = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(given)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function time(seconds) {
  if (seconds < 0.0995) return `${(seconds * 1000).toFixed(0)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(2)} s`;
  if (seconds < 100) return `${seconds.toFixed(1)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}

const began = (test) => Math.min(...test.phases.map((phase) => phase.began));
const ended = (test) => Math.max(...test.phases.map((phase) => phase.ended));
const tests = run.tests.filter((test) => test.phases.length).sort((a, b) => began(a) - began(b));
const first = Math.min(...tests.map(began)), last = Math.max(...tests.map(ended));
let chosen = null, filter = "all";

// -- a chart: lanes with bars, and an axis ----------------------------------------------------------

function chart(place, lanes, from, to) {
  const span = Math.max(to - from, 0.001);
  place.replaceChildren();
  for (const [name, bars] of lanes) {
    const track = make("div", { class: "track" });
    for (const bar of bars) {
      const width = (100 * (bar.ended - bar.began)) / span;
      const element = make("button", { class: `bar ${bar.class}${width < 3 ? " narrow" : ""}`, title: bar.title, type: "button",
        "aria-label": bar.title, onclick: bar.choose }, width < 3 ? "" : bar.label);
      element.style.left = `${(100 * (bar.began - from)) / span}%`;
      element.style.width = `${width}%`;
      bar.element = element;
      track.append(element);
    }
    place.append(make("div", { class: "lane" }, make("span", { title: name }, name), track));
  }
  const axis = make("div", { class: "axis" });
  const marks = 6;
  for (let mark = 0; mark <= marks; mark += 1) {
    const label = make("span", {}, mark === 0 ? "0" : time((span * mark) / marks));
    label.style.left = `${(100 * mark) / marks}%`;
    axis.append(label);
  }
  place.append(axis);
}

// -- the run ----------------------------------------------------------------------------------------

function showRun() {
  const workers = [...new Set(tests.map((test) => test.worker))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
  const lanes = workers.map((worker) => [worker, tests.filter((test) => test.worker === worker).map((test) => {
    const bar = { began: began(test), ended: ended(test), class: test.outcome, label: test.name,
      title: `${test.id}: ${test.outcome}, ${time(ended(test) - began(test))}`, choose: () => choose(test) };
    test.bar = bar;
    return bar;
  })]);
  chart(by("run"), lanes, first, last);
}

function showSummary() {
  document.title = `Test run: ${run.title}`;
  by("title").textContent = run.title;
  const forks = tests.flatMap((test) => (test.steps || []).filter((step) => step.kind === "fork" && !step.failed));
  const times = forks.map((step) => step.ended - step.began).sort((a, b) => a - b);
  const parts = [`${tests.length} tests in ${time(last - first)}`, new Date(run.began * 1000).toLocaleString()];
  if (times.length) parts.splice(1, 0, `${times.length} forks, median ${time(times[Math.floor(times.length / 2)])}`);
  by("summary").textContent = parts.join(" · ");
  const outcomes = ["passed", "failed", "error", "skipped"].filter((outcome) => tests.some((test) => test.outcome === outcome));
  for (const outcome of ["all", ...outcomes]) {
    const count = outcome === "all" ? tests.length : tests.filter((test) => test.outcome === outcome).length;
    by("filters").append(make("button", { type: "button", "data-filter": outcome, "aria-pressed": outcome === filter,
      onclick: () => { filter = outcome; showTests(); } },
      outcome === "all" ? "" : make("span", { class: `dot ${outcome}` }), `${count} ${outcome}`));
  }
}

function showTests() {
  for (const button of by("filters").children) button.setAttribute("aria-pressed", String(button.dataset.filter === filter));
  const list = by("tests");
  list.replaceChildren();
  let file = null;
  for (const test of tests) {
    const shown = filter === "all" || test.outcome === filter;
    test.bar.element.classList.toggle("dim", !shown);
    if (!shown) continue;
    if (test.file !== file) list.append(make("li", { class: "file" }, file = test.file));
    test.item = make("li", { tabindex: "0", "aria-selected": String(test === chosen), onclick: () => choose(test),
      onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(test); } } },
      make("span", { class: `dot ${test.outcome}`, title: test.outcome }), make("span", { class: "name" }, test.name),
      make("span", { class: "time" }, time(ended(test) - began(test))));
    list.append(test.item);
  }
}

// -- one test ---------------------------------------------------------------------------------------

function choose(test) {
  for (const other of tests) {
    other.bar.element.classList.toggle("chosen", other === test);
    if (other.item) other.item.setAttribute("aria-selected", String(other === test));
  }
  chosen = test;
  history.replaceState(null, "", `#${encodeURIComponent(test.id)}`);
  showTest(test);
}

function phase(test, when) {
  const found = test.phases.find((one) => one.when === when);
  return found ? `${when} ${time(found.ended - found.began)}` : null;
}

function showTest(test) {
  const page = by("test");
  page.replaceChildren(
    make("h2", {}, make("span", { class: `dot ${test.outcome}` }), test.name),
    make("p", { class: "facts" }, make("b", {}, test.outcome), ` in ${time(ended(test) - began(test))} (`,
      ["setup", "call", "teardown"].map((when) => phase(test, when)).filter(Boolean).join(", "), `) · worker ${test.worker} · ${test.file}`));
  const steps = test.steps || [];
  const rows = steps.map((step) => stepRow(step, beginOf(test, steps)));
  if (steps.length) showChart(page, test, steps, rows);
  if (test.failure) page.append(make("h3", {}, "Failure"), failureText(test.failure));
  if (test.kept && test.kept.length) page.append(make("h3", {}, "Kept machines"),
    ...test.kept.map((command) => make("p", {}, make("code", {}, command))));
  if (test.screens && test.screens.length) page.append(make("h3", {}, "Screens at the failure"), make("div", { class: "screens" },
    ...test.screens.map((screen) => make("figure", {}, make("img", { src: `data:image/png;base64,${screen.png}`, alt: `screen of ${screen.machine}` }),
      make("figcaption", {}, screen.machine)))));
  if (test.files && test.files.length) page.append(make("h3", {}, "Evidence"), make("ul", { class: "files" },
    ...test.files.map((file) => make("li", {}, make("a", { href: [test.directory, ...file.split("/")].map((part, index) =>
      index ? encodeURIComponent(part) : part.split("/").map(encodeURIComponent).join("/")).join("/") }, file)))));
  if (test.missing && test.missing.length) page.append(make("p", { class: "facts" }, `Not there: ${test.missing.join("; ")}`));
  for (const [name, text] of test.sections || []) page.append(make("h3", {}, name), make("pre", {}, text));
  if (steps.length) page.append(make("h3", {}, "Steps"), make("table", {}, make("tbody", {}, ...rows)));
  if (test.left_out) page.append(make("p", { class: "facts" }, `${test.left_out} more steps are not shown; steps.txt has them.`));
  if (!steps.length) page.append(make("p", { class: "facts" }, "This test did nothing with a machine."));
}

function failureText(text) {
  const pre = make("pre", {});
  for (const line of text.split("\n")) pre.append(make("span", { class: line.startsWith("E ") ? "raised" : "" }, `${line}\n`));
  return pre;
}

const beginOf = (test, steps) => Math.min(began(test), ...steps.map((step) => step.began));

function showChart(page, test, steps, rows) {
  const from = beginOf(test, steps);
  const to = Math.max(ended(test), ...steps.map((step) => step.ended));
  const names = [...new Set(steps.map((step) => step.machine || ""))].sort((a, b) => (a !== "") - (b !== ""));
  const lanes = names.map((name) => [name || "test", steps.filter((step) => (step.machine || "") === name)
    .sort((a, b) => (b.kind === "subtest") - (a.kind === "subtest"))
    .map((step) => ({ began: step.began, ended: step.ended, class: `${step.kind}${step.failed ? " bad" : ""}`, label: step.title,
      title: `${step.title} (${time(step.ended - step.began)}${step.status ? `, ${step.status}` : ""})`,
      choose: () => show(rows[steps.indexOf(step)], rows) }))]);
  const place = make("div", { class: "chart" });
  page.append(place);
  chart(place, lanes, from, to);
  const kinds = [...new Set(steps.map((step) => step.kind))];
  page.append(make("div", { class: "legend" }, ...kinds.map((kind) => make("span", {}, make("span", { class: `dot ${kind}` }), kind))));
}

function stepRow(step, from) {
  const prompt = step.kind === "command" ? "$ " : "";
  const what = step.output
    ? make("details", {}, make("summary", {}, prompt + step.title), make("pre", {}, step.output))
    : make("span", {}, prompt + step.title);
  return make("tr", {}, make("td", { class: "num" }, `+${time(step.began - from)}`), make("td", { class: "num" }, time(step.ended - step.began)),
    make("td", { class: "who" }, make("span", { class: `dot ${step.kind}`, title: step.kind }), step.machine || ""),
    make("td", { class: "what" }, what), make("td", { class: `end${step.failed ? " bad-end" : ""}` }, endOf(step)));
}

function endOf(step) {
  if (step.status === "0") return "ok";
  return step.status.length > 60 ? `${step.status.slice(0, 57)}...` : step.status;
}

function show(row, rows) {
  for (const other of rows) other.classList.toggle("chosen", other === row);
  const details = row.querySelector("details");
  if (details) details.open = true;
  row.scrollIntoView({ block: "center", behavior: "smooth" });
}

document.addEventListener("keydown", (event) => {
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1 }[event.key];
  if (!step || !chosen || event.target.closest("pre")) return;
  const shown = tests.filter((test) => filter === "all" || test.outcome === filter);
  const next = shown[shown.indexOf(chosen) + step];
  if (next) { event.preventDefault(); choose(next); next.item.scrollIntoView({ block: "nearest" }); }
});

showRun();
showSummary();
showTests();
const asked = decodeURIComponent(location.hash.slice(1));
const bad = (test) => test.outcome === "failed" || test.outcome === "error";
const begin = tests.find((test) => test.id === asked) || tests.find(bad) || tests.find((test) => (test.steps || []).length) || tests[0];
if (begin) choose(begin);
