"""What lies between cocot and the operating system: files, signals, streams, processes, hardware."""
