# SPDX-License-Identifier: Apache-2.0

from tests.e2e import matrix


def cell_test(state, image_format):
    def test(self):
        self.row(state, image_format)
    return test


def all_cells(disk, booted=False):
    """Make the tests of all states and formats, format by format."""
    tests = {
        f'test_{image_format.replace(" ", "_")}_image_of_a_{state}_guest':
            cell_test(state, image_format)
        for image_format in matrix.FORMATS for state in matrix.STATES}
    name = ''.join(word.capitalize() for word in disk.split())
    return type(f'{name}Test', (matrix.MatrixTestCase,), {
        '__module__': __name__, 'DISK': disk, 'BOOTED': booted, **tests})


Qcow2OnABackingFileTest = all_cells('qcow2 on a backing file', booted=True)
FlatQcow2Test = all_cells('flat qcow2')
RawFileTest = all_cells('raw file')
BlockDeviceTest = all_cells('block device')
