"""``python -m phi4mm.serve``: OpenAI's endpoints over one ``Phi4MM``.

``app.make_app(service)`` puts together routers, each in a module of its own: ``openai/`` those that OpenAI has,
``routes/`` the server's own. A router gets everything from its request's ``Service`` (``service.service_of``).
"""
