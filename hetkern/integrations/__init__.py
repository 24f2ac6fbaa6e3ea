"""hetkern inside other libraries; each module here imports its library when it is used."""
