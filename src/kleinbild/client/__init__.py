"""The client of a Kleinbild server: pictures over HTTP, without torch.

1 what is asked for becomes a call (`asking`), 2 the call is sent, again where that is safe (`flows`, `retrying`), 3 the
answer becomes a value or an error (`answers`, `errors`), 4 what happens meanwhile becomes events (`events`), 5 pictures
are fetched (`picture`). All of that is functions on values; `sync` and `asynchronous` only do the sending and waiting.

`running` finds the server on this machine; it imports no HTTP library.
"""
