# SPDX-License-Identifier: Apache-2.0

import ast
import pathlib

from oslotest import base

import nova_snapext

ROOT = pathlib.Path(nova_snapext.__file__).parent

#: From top to bottom: each imports only what is below it.
LAYERS = ('cmd', 'driver', 'guards', 'snapshot', 'recovery', 'strategies',
          'resources', 'upload', 'encode', 'read', 'journal', 'hypervisor')

#: Below all layers.
GROUND = frozenset({'bounded', 'cancel', 'checks', 'compat', 'conf', 'durable',
                    'exception', 'finder', 'libnbd', 'plan', 'reason',
                    'space'})


def layer(dotted):
    """Return the package or module of ours that a dotted name is in."""
    return dotted.split('.')[1]


def rank(name):
    """Return the position of a layer, or of the ground, from the top."""
    return len(LAYERS) if name in GROUND else LAYERS.index(name)


def is_for_types_only(node):
    return isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test)


def imports(tree):
    """Return the dotted names of ours that code imports, in any function."""
    found = set()
    pending = [tree]
    while pending:
        node = pending.pop()
        if is_for_types_only(node):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            found.update(f'{node.module}.{name.name}' for name in node.names)
        elif isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        pending.extend(ast.iter_child_nodes(node))
    return {name for name in found if name.startswith('nova_snapext.')}


class LayersTest(base.BaseTestCase):

    def modules(self):
        for path in ROOT.rglob('*.py'):
            name = 'nova_snapext.' + '.'.join(
                path.relative_to(ROOT).with_suffix('').parts)
            if name != 'nova_snapext.__init__':
                yield name, imports(ast.parse(path.read_text()))

    def test_every_module_belongs_to_a_layer(self):
        self.assertEqual(
            {*LAYERS, *GROUND}, {layer(name) for name, _ in self.modules()})

    def test_every_import_goes_down(self):
        upward = [f'{module} -> {imported}'
                  for module, found in self.modules() for imported in found
                  if layer(imported) != layer(module) and
                  rank(layer(imported)) < rank(layer(module))]
        self.assertEqual([], upward)

    def test_modules_of_the_ground_do_not_import_each_other_in_a_cycle(self):
        edges = {layer(module): {layer(name) for name in found}
                 for module, found in self.modules()
                 if layer(module) in GROUND}
        while edges:
            leaves = {name for name, needed in edges.items()
                      if not needed & edges.keys()}
            self.assertTrue(leaves, f'a cycle in {sorted(edges)}')
            edges = {name: needed for name, needed in edges.items()
                     if name not in leaves}
