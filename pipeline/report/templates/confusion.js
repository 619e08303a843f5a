// Names the cell of a large confusion matrix that is under the pointer.
for (const figure of document.querySelectorAll("figure[data-cells]")) {
  const classes = JSON.parse(figure.dataset.classes), counts = new Map(), totals = classes.map(() => 0);
  for (const [row, column, count] of JSON.parse(figure.dataset.cells)) {
    counts.set(row * classes.length + column, count);
    totals[row] += count;
  }
  const image = figure.querySelector("image"), output = figure.querySelector("output"), hint = output.textContent;
  const name = (event) => {
    const box = image.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / box.width * classes.length);
    const row = Math.floor((event.clientY - box.top) / box.height * classes.length);
    if (Math.min(row, column) < 0 || Math.max(row, column) >= classes.length) {
      output.textContent = hint;
      return;
    }
    const count = counts.get(row * classes.length + column) ?? 0;
    const what = row === column ? `${classes[row]}, recognized` : `${classes[row]}, taken for ${classes[column]}`;
    output.textContent = `${what}: ${count} of ${totals[row]}`;
  };
  figure.addEventListener("pointermove", name);
  figure.addEventListener("pointerdown", name);
  figure.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") output.textContent = hint; // a finger that was lifted has named its cell
  });
}
