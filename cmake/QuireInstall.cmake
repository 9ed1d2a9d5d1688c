# SPDX-License-Identifier: Apache-2.0
# Install rules: library, headers, the package for find_package(quire), quire.pc.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/quire)

install(TARGETS quire EXPORT quireTargets)
install(TARGETS quire_static EXPORT quireStaticTargets)
install(DIRECTORY include/quire TYPE INCLUDE)
install(EXPORT quireTargets NAMESPACE quire:: DESTINATION ${package_dir})
install(EXPORT quireStaticTargets NAMESPACE quire:: DESTINATION ${package_dir})

configure_package_config_file(cmake/quireConfig.cmake.in quireConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(quireConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/quireConfig.cmake
              ${CMAKE_CURRENT_BINARY_DIR}/quireConfigVersion.cmake
        DESTINATION ${package_dir})

configure_file(cmake/quire.pc.in quire.pc @ONLY)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/quire.pc
        DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

if(TARGET quire_command)
  install(TARGETS quire_command)
endif()
