# find_package(srmsnorm): the operators for the torch of find_package(Torch), Torch_ROOT or CMAKE_PREFIX_PATH.
#   srmsnorm::srmsnorm  what a program links with: the operators register themselves as it starts
#   srmsnorm_LIBRARY    the file, for a program that loads it later
# CMAKE_PREFIX_PATH is srmsnorm.cmake_prefix_path of Python.
get_filename_component(_package "${CMAKE_CURRENT_LIST_DIR}/../.." ABSOLUTE)

find_file(srmsnorm_TORCH_VERSION_H torch/headeronly/version.h
          HINTS "${TORCH_INSTALL_PREFIX}" "${Torch_ROOT}" PATH_SUFFIXES include ../../include)
mark_as_advanced(srmsnorm_TORCH_VERSION_H)
if(NOT srmsnorm_TORCH_VERSION_H)
  set(srmsnorm_FOUND FALSE)
  set(srmsnorm_NOT_FOUND_MESSAGE "srmsnorm: no torch is found: add torch.utils.cmake_prefix_path to CMAKE_PREFIX_PATH")
  return()
endif()
file(READ "${srmsnorm_TORCH_VERSION_H}" _text)
string(REGEX MATCH "TORCH_VERSION_MAJOR ([0-9]+)" _ "${_text}")
set(_major "${CMAKE_MATCH_1}")
string(REGEX MATCH "TORCH_VERSION_MINOR ([0-9]+)" _ "${_text}")
set(_minor "${CMAKE_MATCH_1}")

# A wheel has a folder for each minor version of torch; a build from source is for one torch.
file(GLOB srmsnorm_LIBRARY "${_package}/torch${_major}_${_minor}/_ops.*so")
file(READ "${_package}/built_for.json" _built)
if(NOT srmsnorm_LIBRARY AND _built MATCHES "\"torch\": \"${_major}\\.${_minor}\\.")
  file(GLOB srmsnorm_LIBRARY "${_package}/_ops.*so")
endif()
if(NOT srmsnorm_LIBRARY)
  set(srmsnorm_FOUND FALSE)
  set(srmsnorm_NOT_FOUND_MESSAGE "srmsnorm: ${_package} has no library for torch ${_major}.${_minor}: ${_built}")
  return()
endif()

if(NOT TARGET srmsnorm::srmsnorm)
  add_library(srmsnorm::srmsnorm INTERFACE IMPORTED)
  get_filename_component(_folder "${srmsnorm_LIBRARY}" DIRECTORY)
  # Linked though no symbol of it is called; its own libraries are found as the program starts.
  target_link_libraries(srmsnorm::srmsnorm INTERFACE
    "-Wl,--push-state,--no-as-needed,${srmsnorm_LIBRARY},--pop-state,-rpath,${_folder},--allow-shlib-undefined")
endif()
