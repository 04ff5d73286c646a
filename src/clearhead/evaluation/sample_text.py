"""A page of plain English, written for this purpose, on which a model is tried."""

TEXT = (
    "The train came in late that evening, and by the time we had carried our bags across the bridge the shops "
    "were already dark. My sister had written down the name of the hotel on a piece of paper, but the rain had "
    "got into her pocket and nobody could read it. An old man who was locking the door of the bakery asked where "
    "we wanted to go. When he heard that we had been travelling since the morning, he laughed and said that there "
    "was only one hotel in the town, and that his wife's cousin kept it.\n\n"
    "He walked with us as far as the church. On the way he told us about the river, which had risen so high in "
    'the spring that the children had gone to school by boat for three weeks. "You would not think so now," he '
    'said, and pointed at the thin line of water between the stones. "But in March it was as wide as the square, '
    'and it took the old bridge with it. The one you came over is new."\n\n'
    "The hotel was small and warm. A girl of about ten took our coats and hung them beside the stove, and her "
    "mother brought bread, soup and a large pot of tea without asking whether we were hungry. After supper we sat "
    "by the window and watched the lights go out, one after another, in the houses on the other side of the "
    "valley. In the morning the sun was shining, and we could see the mountains for the first time."
)
"""Three paragraphs of a story."""

_GPT2_IDS = """
    464 4512 1625 287 2739 326 6180 11 290 416 262 640 356 550 5281 674 11668 1973 262 7696 262
    12437 547 1541 3223 13 2011 6621 550 3194 866 262 1438 286 262 7541 319 257 3704 286 3348
    11 475 262 6290 550 1392 656 607 10000 290 8168 714 1100 340 13 1052 1468 582 508 373 22656
    262 3420 286 262 38164 1965 810 356 2227 284 467 13 1649 339 2982 326 356 550 587 16574
    1201 262 3329 11 339 13818 290 531 326 612 373 691 530 7541 287 262 3240 11 290 326 465
    3656 338 16933 4030 340 13 198 198 1544 6807 351 514 355 1290 355 262 4928 13 1550 262 835
    339 1297 514 546 262 7850 11 543 550 17450 523 1029 287 262 6076 326 262 1751 550 3750 284
    1524 416 8848 329 1115 2745 13 366 1639 561 407 892 523 783 553 339 531 11 290 6235 379
    262 7888 1627 286 1660 1022 262 14966 13 366 1537 287 2805 340 373 355 3094 355 262 6616 11
    290 340 1718 262 1468 7696 351 340 13 383 530 345 1625 625 318 649 526 198 198 464 7541
    373 1402 290 5814 13 317 2576 286 546 3478 1718 674 30720 290 9174 606 13970 262 27635 11
    290 607 2802 3181 8509 11 17141 290 257 1588 1787 286 8887 1231 4737 1771 356 547 14720 13
    2293 43743 356 3332 416 262 4324 290
"""

GPT2_IDS = tuple(map(int, _GPT2_IDS.split()))
"""Its first 256 tokens in GPT-2's vocabulary, for weights that come without a tokenizer."""

GPT2_END_OF_TEXT = 50256
"""The token before which texts begin, in that vocabulary."""
