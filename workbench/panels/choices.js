// The table of formats: tick those to measure, choose the one to use. It draws what Python
// worked out and reports two things back: the ticked names and the chosen one. Every string
// is set as text, never as markup.

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

let groups = 0; // radio buttons need a name of their own in each table on the page

function render({ model, el }) {
  const root = element("div", "wb-choices");
  root.dataset.lmSuppressShortcuts = "true";
  el.append(root);
  const group = `wb-choices-${++groups}`;
  let all = false; // whether the rarer formats are shown too

  function draw() {
    const view = model.get("view");
    const focused = document.activeElement?.dataset?.wbKey;
    root.replaceChildren();
    if (!view.groups) return;
    const table = element("table");
    const head = element("tr");
    for (const column of view.columns) {
      const cell = element("th", column.figure ? "wb-figure" : column.wide ? "wb-summary" : "", column.name);
      cell.scope = "col";
      if (column.hint) cell.title = column.hint;
      head.append(cell);
    }
    table.append(element("thead"));
    table.tHead.append(head);
    for (const some of view.groups) table.append(body(some, view.columns.length));
    root.append(table);
    if (view.rare) root.append(more(view.rare));
    if (focused) root.querySelector(`[data-wb-key="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  function body(some, width) {
    const made = element("tbody");
    const title = element("th", "wb-group", some.title);
    title.colSpan = width;
    title.scope = "colgroup";
    const line = element("tr");
    line.append(title);
    made.append(line);
    for (const row of some.rows) {
      if (!row.rare || all || isPicked(row)) made.append(rowOf(row));
    }
    return made;
  }

  const isPicked = (row) =>
    (row.usable && row.name === model.get("chosen")) || (row.tickable && model.get("ticked").includes(row.name));

  function rowOf(row) {
    const chosen = row.usable && row.name === model.get("chosen");
    const made = element("tr", chosen ? "wb-chosen" : "");
    made.append(cellWith(row.tickable ? tick(row) : element("span")));
    const name = element("th", "wb-name", row.name);
    name.scope = "row";
    if (row.instead) name.append(element("span", "wb-instead", row.instead));
    if (row.badge) name.append(element("span", "wb-badge", row.badge));
    made.append(name);
    for (const text of row.figures) made.append(element("td", "wb-figure", text));
    const runs = element("td", "wb-runs", row.runs_on);
    const summary = element("td", "wb-summary", row.summary);
    for (const cell of [name, runs, summary]) cell.title = `${row.summary}\nRuns on ${row.runs_on}.`;
    made.append(errorCell(row), runs, summary, cellWith(row.usable ? radio(row, chosen) : element("span")));
    return made;
  }

  function errorCell(row) {
    const cell = element("td", "wb-figure wb-errorbar");
    cell.title = row.error_hint;
    const bar = element("i");
    bar.style.width = row.error_at === null ? "0" : `${Math.max(2, 100 * row.error_at)}%`;
    const inside = element("div", "", row.error);
    inside.append(bar);
    cell.append(inside);
    return cell;
  }

  function cellWith(content) {
    const cell = element("td", "wb-pick");
    cell.append(content);
    return cell;
  }

  function input(type, row, checked, label) {
    const made = element("input");
    Object.assign(made, { type, checked, disabled: model.get("disabled") });
    made.setAttribute("aria-label", label);
    made.dataset.wbKey = `${type} ${row.name}`;
    return made;
  }

  function tick(row) {
    const made = input("checkbox", row, model.get("ticked").includes(row.name), `measure ${row.name}`);
    made.addEventListener("change", () => {
      const others = model.get("ticked").filter((name) => name !== row.name);
      model.set("ticked", made.checked ? [...others, row.name] : others);
      model.save_changes();
    });
    return made;
  }

  function radio(row, chosen) {
    const made = input("radio", row, chosen, `use ${row.name}`);
    made.name = group;
    made.addEventListener("change", () => {
      model.set("chosen", row.name);
      model.save_changes();
    });
    return made;
  }

  function more(rare) {
    const made = element("button", "wb-more", all ? "Show fewer formats" : `Show ${rare} more formats`);
    made.type = "button";
    made.addEventListener("click", () => {
      all = !all;
      draw();
      root.querySelector(".wb-more")?.focus({ preventScroll: true });
    });
    return made;
  }

  const changes = ["change:view", "change:chosen", "change:ticked", "change:disabled"];
  for (const change of changes) model.on(change, draw);
  draw();
  return () => {
    for (const change of changes) model.off(change, draw);
  };
}

export default { render };
