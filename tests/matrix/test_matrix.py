# SPDX-License-Identifier: Apache-2.0

from tests.e2e import matrix


def cell_test(state, image_format):
    def test(self):
        self.row(state, image_format)
    return test


def disk_test(disk, booted=False):
    """Return a class with the tests of all states and formats of a disk."""
    # The name of a test begins with its format: tests run in the order of
    # their names, and each change of the format restarts nova-compute.
    tests = {
        f'test_{image_format.replace(" ", "_")}_image_of_a_{state}_guest':
            cell_test(state, image_format)
        for image_format in matrix.FORMATS for state in matrix.STATES}
    name = ''.join(word.capitalize() for word in disk.split())
    return type(f'{name}Test', (matrix.MatrixTestCase,), {
        '__module__': __name__, 'DISK': disk, 'BOOTED': booted, **tests})


Qcow2OnABackingFileTest = disk_test('qcow2 on a backing file', booted=True)
FlatQcow2Test = disk_test('flat qcow2')
RawFileTest = disk_test('raw file')
BlockDeviceTest = disk_test('block device')
