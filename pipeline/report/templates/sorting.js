// Every table.sortable: a button in each column's head; once ascending, again descending; what is unknown stays last.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const key = row => row.cells[column].dataset.sort;
      const numbers = [...body.rows].every(row => key(row) === undefined || !Number.isNaN(Number(key(row))));
      const compare = (a, b) => numbers ? a - b : a.localeCompare(b, "en", {numeric: true});
      const rows = [...body.rows].sort((one, other) => {
        const a = key(one), b = key(other);
        if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
        return falling ? compare(b, a) : compare(a, b);
      });
      body.append(...rows);
    });
  });
}
