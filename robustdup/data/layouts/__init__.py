"""How data lies on a disk: folders of classes, lists of files, arrays, the files of well-known datasets, archives."""
