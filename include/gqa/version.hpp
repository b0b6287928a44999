// SPDX-License-Identifier: Apache-2.0
/// @file
/// The version of the library. The build files read it from here; it is stated nowhere else.
#pragma once

#define GQA_VERSION_MAJOR 0
#define GQA_VERSION_MINOR 1
#define GQA_VERSION_PATCH 0
