"""``python -m phi4mm.serve``: OpenAI's endpoints over one ``Phi4MM``.

Each endpoint is a module with a ``router``, which ``app.ROUTERS`` lists: ``openai/`` has those that OpenAI has,
``routes/`` the server's own. An endpoint

- gets what all share from ``service.service_of(request)``;
- enters ``service.admission`` first and takes what it needs of the room for all: rows, prompt tokens, seconds, bytes;
- does what is long in ``service.in_thread``, and hands its request to the engine by ``generation.start``;
- waits by ``sse.until_disconnect``, or answers by ``sse.EventStream``, so that a client that goes away ends its rows;
- raises ``errors.ApiError``, or lets any ``Phi4MMError`` pass: around it, both become OpenAI's error object.

Around them all stand ``middleware`` (ids, logs, bounds of bodies), ``origins`` and ``auth``: a path needs a key unless
``auth`` lists it as open.
"""
