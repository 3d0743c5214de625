// The drawers that a phone has for nav and contents: an entry that was chosen closes its drawer, and the focus goes back to the button that opened it.
document.addEventListener('click', event => {
  const drawer = event.target.closest('dialog');
  if (drawer && event.target.closest('a[href^="#"]')) drawer.close();
});
document.addEventListener('DOMContentLoaded', () => {
  for (const [drawer, button] of [['pst-primary-sidebar-modal', '.primary-toggle'], ['pst-secondary-sidebar-modal', '.secondary-toggle']]) {
    document.getElementById(drawer)?.addEventListener('close', () => document.querySelector(button)?.focus({ preventScroll: true }));
  }
});
