"""Sound cards: devices, clocks, queues and the processing of what a microphone hears."""
