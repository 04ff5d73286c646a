"""A page of plain English, written for this purpose, on which models are checked."""

TEXT = (
    "The train came in late that evening, and by the time we had carried our bags across the bridge the shops "
    "were already dark. My sister had written down the name of the hotel on a piece of paper, but the rain "
    "had got into her pocket and nobody could read it. An old man who was locking the door of the bakery "
    "asked where we wanted to go. When he heard that we had been travelling since the morning, he laughed and "
    "said that there was only one hotel in the town, and that his wife's cousin kept it.\n\n"
    "He walked with us as far as the church. On the way he told us about the river, which had risen so high "
    'in the spring that the children had gone to school by boat for three weeks. "You would not think so '
    'now," he said, and pointed at the thin line of water between the stones. "But in March it was as wide as '
    'the square, and it took the old bridge with it. The one you came over is new."\n\n'
    "The hotel was small and warm. A girl of about ten took our coats and hung them beside the stove, and her "
    "mother brought bread, soup and a large pot of tea without asking whether we were hungry. After supper we "
    "sat by the window and watched the lights go out, one after another, in the houses on the other side of "
    "the valley. In the morning the sun was shining, and we could see the mountains for the first time.\n\n"
    "We stayed for nine days. Every morning my sister took her paints and went down to the river, and I "
    "walked up through the woods to a farm where an old woman sold milk and cheese. She had lived there all "
    'her life and had been to the sea only once, when she was seven years old. "It was very large," she told '
    'me, "and it never stood still. I was glad to come home." On her wall hung a picture of a ship, and under '
    "it stood a glass with a little sand in it.\n\n"
    "On the fourth day I found the dog. He was lying beside the path with his foot in a wire, and when he saw "
    "me he did not bark, but looked at me as if he had been expecting somebody. I opened the wire with my "
    "knife, and tied my handkerchief round his leg, and carried him down to the village, although he was "
    "heavy and the road was long. Nobody knew him. The doctor, who was a kind man and had no other patients "
    "that afternoon, washed the wound and said that it would be well again in a week.\n\n"
    '"What will you do with him?" asked the girl at the hotel. She had already brought a bowl of water and '
    "the end of a sausage, and was sitting on the floor with his head in her lap.\n\n"
    '"I do not know," I said. "We live in a city, on the third floor, and we are away all day."\n\n'
    "She did not answer, but I saw that she was thinking, and that evening I heard her talking to her mother "
    "in the kitchen for a long time. I could not understand the words. First the mother said something short, "
    "and then the girl said something long, and then there was a silence, and then both of them laughed.\n\n"
    "The next morning there was a box beside the stove with an old blanket in it, and the dog was asleep on "
    "the blanket. Nobody said anything about it. When the baker came with the bread he looked at the box, and "
    'then at me, and then he put a second loaf on the table. "For the new guest," he said.\n\n'
    "My sister painted him, of course. She painted him asleep and awake, with the river behind him and with "
    "the mountains behind him, and once, because the girl had asked for it, with a crown on his head like a "
    "king. She said that he was the best model that she had ever had, because he did not want to see the "
    "picture before it was finished. I have that picture in my room now. The paint has become a little darker "
    "with the years, but you can still see that he is looking at somebody who stands just outside the frame, "
    "and that he is happy.\n\n"
    "When we left, they all came with us to the station: the mother and the girl, the old man and his wife, "
    "and the dog, who was walking on four legs again. The train was late. We stood on the platform and talked "
    "about the weather and the harvest, as people do when they do not want to talk about saying goodbye. Then "
    "it came round the hill, much smaller than I remembered it, and stopped with a long sigh.\n\n"
    '"Come back in the spring," said the old man, "and I will show you how wide the river can be."\n\n'
    "We promised that we would. But that winter my sister fell ill, and the year after that I was sent to "
    "work in another country, and so it was a long time before I saw the bridge again. There was a tall young "
    "woman standing in the door of the hotel. She looked at me, and at my bag, and at the rain that was "
    "running off my hat, and then she turned round and called into the house, in a voice that I knew at once, "
    "that there was a guest, and that somebody should put the kettle on."
)
"""A short story in simple English."""

_GPT2_IDS = """
    464 4512 1625 287 2739 326 6180 11 290 416 262 640 356 550 5281 674 11668 1973 262 7696 262 12437 547 1541 3223
    13 2011 6621 550 3194 866 262 1438 286 262 7541 319 257 3704 286 3348 11 475 262 6290 550 1392 656 607 10000 290
    8168 714 1100 340 13 1052 1468 582 508 373 22656 262 3420 286 262 38164 1965 810 356 2227 284 467 13 1649 339
    2982 326 356 550 587 16574 1201 262 3329 11 339 13818 290 531 326 612 373 691 530 7541 287 262 3240 11 290 326
    465 3656 338 16933 4030 340 13 198 198 1544 6807 351 514 355 1290 355 262 4928 13 1550 262 835 339 1297 514 546
    262 7850 11 543 550 17450 523 1029 287 262 6076 326 262 1751 550 3750 284 1524 416 8848 329 1115 2745 13 366
    1639 561 407 892 523 783 553 339 531 11 290 6235 379 262 7888 1627 286 1660 1022 262 14966 13 366 1537 287 2805
    340 373 355 3094 355 262 6616 11 290 340 1718 262 1468 7696 351 340 13 383 530 345 1625 625 318 649 526 198 198
    464 7541 373 1402 290 5814 13 317 2576 286 546 3478 1718 674 30720 290 9174 606 13970 262 27635 11 290 607 2802
    3181 8509 11 17141 290 257 1588 1787 286 8887 1231 4737 1771 356 547 14720 13 2293 43743 356 3332 416 262 4324
    290 7342 262 7588 467 503 11 530 706 1194 11 287 262 7777 319 262 584 1735 286 262 19272 13 554 262 3329 262
    4252 373 22751 11 290 356 714 766 262 12269 329 262 717 640 13 198 198 1135 9658 329 5193 1528 13 3887 3329 616
    6621 1718 607 32281 290 1816 866 284 262 7850 11 290 314 6807 510 832 262 16479 284 257 5318 810 281 1468 2415
    2702 7545 290 9891 13 1375 550 5615 612 477 607 1204 290 550 587 284 262 5417 691 1752 11 618 673 373 3598 812
    1468 13 366 1026 373 845 1588 553 673 1297 502 11 366 392 340 1239 6204 991 13 314 373 9675 284 1282 1363 526
    1550 607 3355 9174 257 4286 286 257 4074 11 290 739 340 6204 257 5405 351 257 1310 6450 287 340 13 198 198 2202
    262 5544 1110 314 1043 262 3290 13 679 373 9105 13970 262 3108 351 465 2366 287 257 6503 11 290 618 339 2497 502
    339 750 407 21405 11 475 3114 379 502 355 611 339 550 587 12451 8276 13 314 4721 262 6503 351 616 9845 11 290
    8165 616 1021 6122 17351 2835 465 1232 11 290 5281 683 866 284 262 7404 11 3584 339 373 4334 290 262 2975 373
    890 13 15658 2993 683 13 383 6253 11 508 373 257 1611 582 290 550 645 584 3871 326 6672 11 18989 262 11699
"""

GPT2_IDS = tuple(map(int, _GPT2_IDS.split()))
"""The first 512 tokens of `TEXT` in GPT-2's vocabulary, for weights without a tokenizer."""

GPT2_END_OF_TEXT = 50256
"""The token that precedes each text in that vocabulary."""
