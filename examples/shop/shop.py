"""An order service: POST /orders/KEY stores an order, GET /orders lists the keys of all orders.

A POST is answered after PostgreSQL has acknowledged the commit. libpq finds the server that accepts writes.
"""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2

SERVERS = "host=db,replica dbname=shop user=shop target_session_attrs=read-write connect_timeout=2"


class Orders(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer("SELECT key FROM orders ORDER BY key", ())

    def do_POST(self) -> None:
        key = self.path.rpartition("/")[2]
        self._answer("INSERT INTO orders VALUES (%s) ON CONFLICT DO NOTHING RETURNING key", (key,))

    def _answer(self, statement: str, values: tuple[str, ...]) -> None:
        try:
            with psycopg2.connect(SERVERS) as connection, connection.cursor() as cursor:
                cursor.execute(statement, values)
                rows = cursor.fetchall()
        except psycopg2.Error as error:
            self._send(503, str(error))
        else:
            self._send(200, "".join(f"{key}\n" for (key,) in rows))

    def _send(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    ThreadingHTTPServer(("", 8000), Orders).serve_forever()
