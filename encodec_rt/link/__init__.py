"""The voice link: EnCodec frames over RTP between two machines, made to survive the network."""
