const fs = require("fs");

const request = JSON.parse(fs.readFileSync("/request.json", "utf8"));
const name = request.body?.name ?? "world";
console.log(`greeting ${name}`); // shown by `dartcloud logs`

fs.writeFileSync("/result.json", JSON.stringify({ body: { message: `Hello, ${name}!` } }));
