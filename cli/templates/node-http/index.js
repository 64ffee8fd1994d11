const http = require("http");

const server = http.createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  const name = (body && JSON.parse(body).name) ?? "world";
  console.log(`greeting ${name}`); // shown by `dartcloud logs`
  response.setHeader("Content-Type", "application/json");
  response.end(JSON.stringify({ message: `Hello, ${name}!` }));
});

server.listen(process.env.PORT, "127.0.0.1");
