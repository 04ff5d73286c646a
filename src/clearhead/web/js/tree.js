// The text as a tree: the prompt is the root's ids, and each other node is one token. Undo and redo move through earlier
// states; nodes are only ever added, so a state is the number of nodes, the root and the current node.

export class Tree {
  constructor(ids = [], texts = []) {
    this.nodes = [{ parent: -1, ids, texts, children: [] }];
    this.current = 0;
    this.past = [];
    this.future = [];
  }

  static from({ nodes, current }) {
    const tree = new Tree();
    tree.nodes = nodes.map(node => ({ ...node, children: [] }));
    tree.nodes.forEach((node, i) => node.parent >= 0 && tree.nodes[node.parent].children.push(i));
    tree.current = current;
    return tree;
  }

  toJSON() {
    return { current: this.current, nodes: this.nodes.map(({ children, ...node }) => node) };
  }

  // Remembers the present state, to which `undo` returns.
  mark() {
    this.past.push({ length: this.nodes.length, current: this.current });
    this.future = [];
  }

  undo() {
    return this.travel(this.past, this.future);
  }

  redo() {
    return this.travel(this.future, this.past);
  }

  travel(from, to) {
    if (!from.length) return false;
    to.push({ current: this.current });
    this.current = from.pop().current;
    return true;
  }

  // A new prompt is a new root; the old text stays reachable by undo.
  plant(ids, texts) {
    this.nodes.push({ parent: -1, ids, texts, children: [] });
    this.current = this.nodes.length - 1;
  }

  // Goes to the child with this token, which is made if it does not exist.
  grow(id, text, probability = null) {
    const existing = this.nodes[this.current].children.find(child => this.nodes[child].id === id);
    if (existing !== undefined) {
      this.current = existing;
      return;
    }
    this.nodes.push({ parent: this.current, id, text, probability, children: [] });
    this.nodes[this.current].children.push(this.nodes.length - 1);
    this.current = this.nodes.length - 1;
  }

  // The nodes from the root to a node.
  line(node = this.current) {
    const found = [];
    for (let i = node; i >= 0; i = this.nodes[i].parent) found.push(i);
    return found.reverse();
  }

  get root() {
    return this.nodes[this.line()[0]];
  }

  // The current text: { ids, texts, probabilities, prompt }, of which the first `prompt` tokens are the prompt's.
  path() {
    const [root, ...rest] = this.line(), { ids, texts, probabilities } = this.nodes[root];
    const nodes = rest.map(i => this.nodes[i]);
    return {
      prompt: ids.length,
      ids: [...ids, ...nodes.map(node => node.id)],
      texts: [...texts, ...nodes.map(node => node.text)],
      probabilities: [...(probabilities ?? ids.map(() => null)), ...nodes.map(node => node.probability)],
    };
  }

  // Goes back to the node before the token at `position` of the path, and continues with another token.
  branch(position, id, text, probability) {
    const line = this.line(), { ids, texts } = this.nodes[line[0]];
    if (position < ids.length) this.plant(ids.slice(0, position), texts.slice(0, position));
    else this.current = line[position - ids.length];
    this.grow(id, text, probability);
  }

  // The branches of the current root, each as { from, parent, node, depth }: after how many tokens it leaves which other
  // branch (-1 for the first), its last node, and that node's number of tokens.
  branches() {
    const found = [];
    const visit = (node, depth, branch) =>
      this.nodes[node].children.forEach((child, i) => {
        const own = i || branch < 0 ? found.push({ from: depth, parent: branch }) - 1 : branch;
        Object.assign(found[own], { node: child, depth: depth + 1 });
        visit(child, depth + 1, own);
      });
    visit(this.line()[0], 0, -1);
    return found;
  }
}
