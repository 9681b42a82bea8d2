// The table of delays: what each part takes, in all, and what was counted.

export function showRows(body, rows, counted) {
  const sum = rows.reduce((all, [, seconds]) => all + seconds, 0);
  const timed = [...rows, ["Together", sum]].map(([name, seconds]) => [name, `${(1000 * seconds).toFixed(1)} ms`]);
  body.replaceChildren(
    ...[...timed, ...counted].map(([name, value], i) => {
      const row = document.createElement("tr");
      if (i === rows.length) row.className = "total";
      row.append(...[name, value].map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      return row;
    }),
  );
}
