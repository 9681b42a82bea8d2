"""Many live sessions on one engine: a WebSocket server with measured capacity."""
