# SPDX-License-Identifier: Apache-2.0
def register():
    pass
