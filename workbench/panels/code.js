// A text, read-only, with a button that copies it: a panel's call, a command, a table. Set as text, never as markup.

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard without a secure context (a lab opened over plain http): the old way.
    const area = document.createElement("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
}

function render({ model, el }) {
  const root = document.createElement("div");
  root.className = model.get("bare") ? "wb-code wb-bare" : "wb-code";
  root.dataset.lmSuppressShortcuts = "true";
  const label = `Copy ${model.get("label")}`.trim();
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = label;
  button.addEventListener("click", async () => {
    await copy(model.get("code"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = label), 1500);
  });
  const block = document.createElement("pre");
  block.tabIndex = 0;
  block.setAttribute("aria-label", model.get("label") || "to copy");
  if (!model.get("bare")) root.append(block);
  root.append(button);
  el.append(root);

  const show = () => {
    block.textContent = model.get("code");
    root.style.display = model.get("code") ? "" : "none";
  };
  model.on("change:code", show);
  show();
  return () => model.off("change:code", show);
}

export default { render };
