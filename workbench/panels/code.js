// The call behind a panel, read-only, with a button that copies it. Set as text, never as markup.

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
  root.className = "wb-code";
  root.dataset.lmSuppressShortcuts = "true";
  const block = document.createElement("pre");
  block.tabIndex = 0;
  block.setAttribute("aria-label", "This panel as code");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy code";
  button.addEventListener("click", async () => {
    await copy(model.get("code"));
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy code"), 1500);
  });
  root.append(block, button);
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
