// A server of HTTP/2 that closes its first connection at the tenth request on it: that one and those before are answered, later
// ones are not looked at. /served tells how many were.
'use strict';

const http2 = require('http2');

let served = 0;
let first = null;
const server = http2.createServer();

server.on('stream', (stream, headers) => {
  const session = stream.session;
  // Those that are refused.
  stream.on('error', () => {});
  if (headers[':path'] === '/') {
    stream.respond({ ':status': 200 });
    stream.end();
    return;
  }
  if (headers[':path'] === '/served') {
    stream.respond({ ':status': 200 });
    stream.end(String(served));
    return;
  }
  first ??= session;
  if (session === first) {
    session.count = (session.count ?? 0) + 1;
    if (session.count === 10) session.goaway(http2.constants.NGHTTP2_NO_ERROR, stream.id);
    if (session.count > 10) return;
  }
  served += 1;
  const body = [];
  stream.on('data', (data) => body.push(data));
  stream.on('end', () => {
    // Later than the GOAWAY arrives.
    setTimeout(() => {
      stream.respond({ ':status': 200 });
      stream.end(Buffer.concat(body));
    }, 100);
  });
});
server.on('sessionError', () => {});
server.listen(process.env.PORT, '127.0.0.1');
