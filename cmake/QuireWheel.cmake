# SPDX-License-Identifier: Apache-2.0
# What pip puts beside the Python package (component `python`): the shared library, and Highway's
# where that is shared too, as a wheel may not rely on what is installed. Wheels hold no links, so each
# is one file, named as it is looked up.
set_target_properties(quire PROPERTIES
  VERSION ${PROJECT_VERSION_MAJOR}
  INSTALL_RPATH "$ORIGIN")
install(TARGETS quire LIBRARY DESTINATION . COMPONENT python NAMELINK_SKIP)

get_target_property(highway_type hwy::hwy TYPE)
if(highway_type STREQUAL SHARED_LIBRARY)
  install(FILES $<TARGET_FILE:hwy::hwy> DESTINATION . COMPONENT python
          RENAME $<TARGET_SONAME_FILE_NAME:hwy::hwy>)
endif()
