// The table of delays: what each part takes, in all, and what was counted.

const COUNTS = {
  received: "Packets received", refused: "Packets refused", late: "Frames too late", frames: "Frames played",
  copies: "Frames from copies", lost: "Frames concealed", silent: "Frames of silence", held: "Frames inserted",
  skipped: "Frames skipped", repaired: "Late frames put right", missed: "Frames without computing time",
};

export function showRows(body, rows, counted) {
  const sum = rows.reduce((all, [, seconds]) => all + seconds, 0);
  const counts = counted.map(([name, count]) => [COUNTS[name] ?? name, count]);
  const timed = [...rows, ["Together", sum]].map(([name, seconds]) => [name, `${(1000 * seconds).toFixed(1)} ms`]);
  body.replaceChildren(
    ...[...timed, ...counts].map(([name, value], i) => {
      const row = document.createElement("tr");
      if (i === rows.length) row.className = "total";
      row.append(...[name, value].map((text) => Object.assign(document.createElement("td"), { textContent: text })));
      return row;
    }),
  );
}
