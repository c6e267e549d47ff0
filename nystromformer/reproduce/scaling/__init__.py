"""`reproduce figure=scaling`: loss against compute for exact and Nyström attention, measured and computed.

curves  the runs, three sizes by three lengths by two attentions, as points of loss, tokens and FLOPs
law     power laws through such points, with an interval of each parameter
base    what is computed for the 12 layers of 768: tokens a second and days on several GPUs
page    the result: tables and the picture
"""
