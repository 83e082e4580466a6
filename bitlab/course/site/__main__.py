import sys

from bitlab.course.site.builder import main

sys.exit(main())
