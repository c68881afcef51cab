async def sweep(*a, **k):
    pass
