// The drawers that a phone has for nav and contents: an entry that was chosen closes its drawer, and the focus goes back to the button that opened it.
document.addEventListener('click', event => {
  const drawer = event.target.closest('dialog');
  if (drawer && event.target.closest('a[href^="#"]')) drawer.close();
});
document.addEventListener('DOMContentLoaded', () => {
  document.querySelectorAll('.bd-sidebar-secondary .pre').forEach(o => { o.innerHTML = o.innerHTML.replaceAll('_', '_<wbr>'); }); // long names break there
  document.querySelectorAll(':is(p, li, td) .pre').forEach(o => o.classList.toggle('short', o.textContent.length < 33)); // a line of a phone holds it
  for (const [drawer, button] of [['pst-primary-sidebar-modal', '.primary-toggle'], ['pst-secondary-sidebar-modal', '.secondary-toggle']]) {
    document.getElementById(drawer)?.addEventListener('close', () => document.querySelector(button)?.focus({ preventScroll: true }));
  }
});
// A page within a page, such as a report, follows the site's light or dark scheme.
window.addEventListener('load', () => {
  const pass = () => document.querySelectorAll('iframe[srcdoc]').forEach(o => { o.contentDocument.documentElement.style.colorScheme = document.documentElement.dataset.theme; });
  pass();
  new MutationObserver(pass).observe(document.documentElement, { attributeFilter: ['data-theme'] });
});
